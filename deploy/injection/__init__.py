"""The injector: adds the sidecar to pods, as an admission webhook and offline. See docs/injection.md."""
