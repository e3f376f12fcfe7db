"""Models fitted to likes, one folder each, and their shared code."""
