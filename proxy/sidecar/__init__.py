"""Runs the sidecar process: settings, assembly, services, state, registration, metrics."""
