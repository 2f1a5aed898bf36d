"""Speaks with the other sidecars: client, API, probes, clocks, comparison of copies."""
