"""Runs the control server process: leadership, admin interface, start and stop."""
