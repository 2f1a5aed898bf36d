"""Reads JSON and YAML that strangers may have written, in bounded time and memory."""
