"""Sessions: their form, their encryption, group commit, copies and digests."""
