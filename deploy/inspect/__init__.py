"""Looks at a pool from outside and shows what it finds. Read only."""
