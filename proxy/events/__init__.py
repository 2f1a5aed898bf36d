"""Records what this member knows of changes of active."""
