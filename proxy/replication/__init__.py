"""Replication between members over the network: the connection of an active to a copy, and both ends of it."""
