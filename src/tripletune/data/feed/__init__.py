"""Ratings that arrive as files of their own, on disk or in object storage."""
