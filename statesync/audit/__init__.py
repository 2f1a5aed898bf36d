"""The audit log of a pool: who did what, from where, why, and how to undo it."""
