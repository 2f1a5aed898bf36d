"""Reads a pool from outside and shows its state. Read only."""
