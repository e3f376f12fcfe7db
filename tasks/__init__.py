"""Prefect tasks, made from the registry: retries, tags, a log line and tracking around ``pipeline.stages``; and the
automations that watch over them."""
