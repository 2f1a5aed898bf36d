"""Runs the admission webhook, with its certificates."""
