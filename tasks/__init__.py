"""Prefect tasks: one file per stage; retries, tags, a log line and tracking around ``pipeline.stages``."""
