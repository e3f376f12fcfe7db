"""Measures of the shards and their drift since the last run."""

PAGE, FIGURES = "quality.html", "quality.json"
"""Files of a run's quality report; here, as their readers need none of what measures the shards."""
