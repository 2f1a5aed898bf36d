"""Two distant sites with an etcd each: the mirror, moves of the home, take-overs, and the fence of the old home."""
