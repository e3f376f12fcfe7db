"""Pre-flight checks: what would lose a run, or make it worse, found in seconds before it starts."""
