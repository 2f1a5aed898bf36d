"""Tells whether the application is well, whether its checks pass and whether this process is late."""
