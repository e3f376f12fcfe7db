"""Subprocesses that end with their parent."""
