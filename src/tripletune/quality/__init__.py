"""Measures of the shards and their drift since the last run."""
