"""Split of every rating by the protocol, and frozen evaluation sets."""
