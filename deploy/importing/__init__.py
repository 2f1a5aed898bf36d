"""Reads the session affinity that people have configured elsewhere, and makes pool specs of it. Pure."""
