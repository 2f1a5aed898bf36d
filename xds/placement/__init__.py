"""Decides which member is active, standby and backup of which slot. Pure."""
