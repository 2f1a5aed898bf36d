"""A cart in Starlette with starsessions: ``python -m understudy.deploy.examples.frameworks.starlette_app``.

FastAPI is a Starlette: it takes the same two middlewares.
"""

import os

import uvicorn
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starsessions import SessionAutoloadMiddleware, SessionMiddleware
from starsessions.stores.redis import RedisStore

URL = os.environ.get("UNDERSTUDY_REDIS_URL") or os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
SECONDS = int(os.environ.get("SESSION_SECONDS", "3600"))

store = RedisStore(connection=Redis.from_url(URL))
sessions = [
    Middleware(SessionMiddleware, store=store, lifetime=SECONDS, rolling=True, cookie_https_only=False),
    Middleware(SessionAutoloadMiddleware),
]


def shown(request: Request) -> Response:
    """The session as the client sees it."""
    return JSONResponse({"count": request.session.get("count", 0), "items": request.session.get("items", [])})


async def show(request: Request) -> Response:
    """Show the cart."""
    return shown(request)


async def add(request: Request) -> Response:
    """Add an item."""
    request.session["count"] = request.session.get("count", 0) + 1
    request.session["items"] = [*request.session.get("items", []), request.query_params["item"]]
    return shown(request)


async def logout(request: Request) -> Response:
    """End the session."""
    request.session.clear()
    return shown(request)


async def healthz(_: Request) -> Response:
    """Answer without a session."""
    return PlainTextResponse("ok")


routes = [
    Route("/", show),
    Route("/add", add, methods=["POST"]),
    Route("/logout", logout, methods=["POST"]),
    Route("/healthz", healthz),
]
app = Starlette(routes=routes, middleware=sessions)

if __name__ == "__main__":
    uvicorn.run(app, host=os.environ.get("HOST", "127.0.0.1"), port=int(os.environ.get("PORT", "8000")))
