"""Records what this member knows of changes of active; the protocol reports to its one recorder."""
