"""Replication between members: sync sets, histories, both sides of a slot's stream, messages. Pure."""
