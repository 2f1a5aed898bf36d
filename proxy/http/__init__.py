"""What the sidecar's HTTP APIs share: replies, problem documents and the reading of requests."""
