"""Which process this is, the pool as it sees it, and what it keeps of the pool in memory."""
