"""Ablations: a named set of changes to one config, run from shared outputs and compared with the unchanged run."""
