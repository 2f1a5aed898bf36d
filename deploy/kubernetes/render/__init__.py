"""Renders the manifests of a pool: pure functions, a module for each part."""
