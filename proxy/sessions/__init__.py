"""Takes a session call from its protocol to its commit."""
