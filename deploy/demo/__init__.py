"""``understudy demo``: kills a member of a pool under load and reports what its clients saw."""
