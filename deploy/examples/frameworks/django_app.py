"""A cart in Django: ``python -m understudy.deploy.examples.frameworks.django_app``.

``CACHE_BACKEND`` chooses Django's own backend for Redis (the default) or ``django_redis.cache.RedisCache``.
``SESSION_ENGINE`` is ``django.contrib.sessions.backends.cache`` (the default) or ``...cached_db``, which needs
``DATABASE``, the path of an SQLite file that all members share.
"""

import os
import sys

import django
from django.conf import settings
from django.core.management import call_command, execute_from_command_line
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

URL = os.environ.get("UNDERSTUDY_REDIS_URL") or os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
BACKEND = os.environ.get("CACHE_BACKEND", "django.core.cache.backends.redis.RedisCache")
DATABASE = os.environ.get("DATABASE")

settings.configure(
    CACHES={"default": {"BACKEND": BACKEND, "LOCATION": URL}},
    SESSION_ENGINE=os.environ.get("SESSION_ENGINE", "django.contrib.sessions.backends.cache"),
    SESSION_COOKIE_AGE=int(os.environ.get("SESSION_SECONDS", "3600")),
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    INSTALLED_APPS=["django.contrib.sessions"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": DATABASE}} if DATABASE else {},
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY=os.environ.get("SECRET_KEY", "an example keeps no secrets"),
)


def shown(request: HttpRequest) -> JsonResponse:
    """The session as the client sees it."""
    return JsonResponse({"count": request.session.get("count", 0), "items": request.session.get("items", [])})


def show(request: HttpRequest) -> HttpResponse:
    """Show the cart."""
    return shown(request)


def add(request: HttpRequest) -> HttpResponse:
    """Add an item."""
    request.session["count"] = request.session.get("count", 0) + 1
    request.session["items"] = [*request.session.get("items", []), request.GET["item"]]
    return shown(request)


def logout(request: HttpRequest) -> HttpResponse:
    """End the session."""
    request.session.flush()
    return shown(request)


def healthz(_: HttpRequest) -> HttpResponse:
    """Answer without a session."""
    return HttpResponse("ok")


urlpatterns = [path("", show), path("add", add), path("logout", logout), path("healthz", healthz)]

if __name__ == "__main__":
    django.setup()
    if DATABASE:
        call_command("migrate", verbosity=0)
    address = f"{os.environ.get('HOST', '127.0.0.1')}:{os.environ.get('PORT', '8000')}"
    execute_from_command_line([sys.argv[0], "runserver", address, "--noreload", "--skip-checks"])
