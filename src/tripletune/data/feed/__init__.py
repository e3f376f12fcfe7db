"""Ratings in separate files, on disk or in object storage."""
