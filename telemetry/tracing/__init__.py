"""Sends spans out: set-up, names, trace identity, export."""
