"""Behaviour tokens: which lines of a prompt have one."""

SLOTS = ("liked", "disliked", "candidates")
"""Sections of a template that can have behaviour tokens: each line is one film, and a column lists the films."""
