"""Hint feedback: a choice of a film's facts learned from what earlier answers gained by the facts shown."""
