"""Proof on the written shards that nothing leaked."""
