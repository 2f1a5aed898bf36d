"""Records, keys, spec and state of a pool, and the pure part of the ownership protocol."""
