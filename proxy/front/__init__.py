"""Runs a front Envoy: bootstrap, supervision, TLS files."""
