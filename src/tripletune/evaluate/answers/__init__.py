"""Audits of the answers: what a run's predictions say about the model beyond its metrics. No model is called."""
