"""Runs next to each other: measured differences on the same users and questions, and what differs between the runs."""
