"""Prometheus metrics of phases and of this process's own spans."""
