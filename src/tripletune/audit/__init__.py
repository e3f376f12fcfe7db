"""Audit of the written shards for leaks."""
