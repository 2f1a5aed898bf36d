"""Applies specs, verifies copies, writes and restores backups."""
