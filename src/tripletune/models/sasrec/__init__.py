"""SASRec: causal transformer over a user's likes."""
