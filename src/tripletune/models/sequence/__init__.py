"""Event sequence model: causal transformer over a user's whole stream of ratings."""
