"""Stages of a run: their registry, functions, order and fingerprints."""
