"""Measures changes of active and records their spans."""
