"""Pauses between retries, and durations as people write them."""
