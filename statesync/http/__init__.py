"""Serves every HTTP port of ours in one way, and names the headers that only applications set."""
