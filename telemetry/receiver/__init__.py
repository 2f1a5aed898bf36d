"""Receives OTLP over gRPC and HTTP and hands it to the store."""
