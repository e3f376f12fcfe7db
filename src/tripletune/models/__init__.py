"""Models that learn from likes, one folder each, and what they share."""
