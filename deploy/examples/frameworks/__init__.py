"""One small application for each web framework that keeps its sessions in Redis, unmodified.

The applications are the same: a counter and a cart in the session. ``GET /`` shows them, ``POST /add?item=x`` adds an
item, ``POST /logout`` ends the session. They read the address of the store from ``UNDERSTUDY_REDIS_URL``, or from
``REDIS_URL`` for a plain Redis. docs/frameworks.md has their configuration and its traps.
"""
