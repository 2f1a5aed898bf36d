"""The etcd client: calls, watches, leases, and a live copy of key ranges."""
