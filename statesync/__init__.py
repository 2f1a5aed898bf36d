"""The truth in etcd: client, pool model, slots, ownership and session replication.

Knows nothing of Envoy, of HTTP servers or of how processes are started; imports only from ``telemetry``.
"""
