"""The Redis port of a sidecar: applications use their framework's Redis store, and sessions survive as over HTTP."""
