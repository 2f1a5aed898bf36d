"""Runs and ships it: the command line, a whole pool on one machine, demo and examples."""
