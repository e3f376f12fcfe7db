"""Ingest: MovieLens releases into typed Parquet."""
