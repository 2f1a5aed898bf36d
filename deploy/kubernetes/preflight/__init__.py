"""Judges manifests, an etcd and a cluster before a pool is installed."""
