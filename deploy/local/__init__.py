"""Runs a whole pool on this machine."""
