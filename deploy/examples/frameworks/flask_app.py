"""A cart in Flask with Flask-Session: ``python -m understudy.deploy.examples.frameworks.flask_app``."""

import os
from typing import Any

from flask import Flask, request, session
from flask_session import Session
from redis import Redis

URL = os.environ.get("UNDERSTUDY_REDIS_URL") or os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")

app = Flask(__name__)
app.config["SESSION_TYPE"] = "redis"
app.config["SESSION_REDIS"] = Redis.from_url(URL)
app.config["PERMANENT_SESSION_LIFETIME"] = int(os.environ.get("SESSION_SECONDS", "3600"))
Session(app)


def shown() -> dict[str, Any]:
    """The session as the client sees it."""
    return {"count": session.get("count", 0), "items": session.get("items", [])}


@app.get("/")
def show() -> dict[str, Any]:
    """Show the cart."""
    return shown()


@app.post("/add")
def add() -> dict[str, Any]:
    """Add an item."""
    session["count"] = session.get("count", 0) + 1
    session["items"] = [*session.get("items", []), request.args["item"]]
    return shown()


@app.post("/logout")
def logout() -> dict[str, Any]:
    """End the session."""
    session.clear()
    return shown()


@app.get("/healthz")
def healthz() -> str:
    """Answer without a session."""
    return "ok"


if __name__ == "__main__":
    app.run(os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "8000")), threaded=True)
