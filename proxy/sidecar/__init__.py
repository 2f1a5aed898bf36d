"""Runs the sidecar process: settings, assembly, registration, metrics."""
