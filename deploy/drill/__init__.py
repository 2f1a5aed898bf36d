"""``understudy drill``: injects a fault into a running pool and reports what its clients saw."""
