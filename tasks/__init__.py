"""Prefect tasks: one file per stage. They add retries, tags, a log line and tracking to ``tripletune.stages``."""
