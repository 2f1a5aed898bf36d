"""Tells whether the application is well, its checks pass and this process is in time, and what will run out."""
