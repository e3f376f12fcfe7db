"""LightGCN: collaborative filtering on the graph of likes."""
