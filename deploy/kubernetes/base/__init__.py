"""What manifests, injection and preflight share: YAML, names, objects, settings of sidecars. Pure."""
