"""Tenants: their quotas and pools, where that stands in etcd, and whether a pool fits. Checks are pure."""
