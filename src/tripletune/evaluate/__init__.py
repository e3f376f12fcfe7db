"""Metrics, bootstrap intervals and the HTML report."""
