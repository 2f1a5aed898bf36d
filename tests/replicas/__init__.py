"""What users of ``durability: replicas`` notice, tried on real processes."""
