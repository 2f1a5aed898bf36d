"""Decides what an operator's command writes: drains and sites, for the command line and for the console. Pure."""
