"""Keeps spans, log records and request counts in one SQLite file."""
