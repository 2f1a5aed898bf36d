"""Crash points: named places at which a process can be told to end itself."""
