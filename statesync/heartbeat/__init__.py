"""Heartbeats and pulses between members and control servers, and adaptive timeouts."""
