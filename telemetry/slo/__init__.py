"""Reviews failovers against the pool's objectives, and shows the result."""
