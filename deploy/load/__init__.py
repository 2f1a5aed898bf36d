"""Puts load on a pool and judges what its clients saw."""
