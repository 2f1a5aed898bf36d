"""``understudy drill``: breaks a part of a running pool on purpose and reports what its clients noticed."""
