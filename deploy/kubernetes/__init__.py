"""Runs Understudy on Kubernetes: manifests, injection of sidecars, Istio, preflight."""
