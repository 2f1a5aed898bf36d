"""Renders the manifests of one pool or several: pure functions, a module for each part."""
