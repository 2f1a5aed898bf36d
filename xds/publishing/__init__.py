"""Puts a view of the pool into the xDS cache."""
