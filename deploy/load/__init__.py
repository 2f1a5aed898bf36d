"""Generates load on a pool and checks what its clients saw."""
