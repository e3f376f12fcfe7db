"""Synthetic MovieLens-like releases with planted preferences."""
