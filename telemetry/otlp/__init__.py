"""Reads OTLP: spans, log records and request counts."""
