"""Split of the ratings by protocol, and frozen evaluation sets."""
