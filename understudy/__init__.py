"""Stateful services behind Envoy and Istio that lose no session when a member dies."""

__version__ = "0.1.0"
