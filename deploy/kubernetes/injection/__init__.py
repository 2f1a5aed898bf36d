"""The mutation of pods: adds the sidecar, the same way for the webhook and for files. Pure."""
