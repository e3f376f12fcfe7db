"""Columns of every Parquet file that one stage writes and another reads, by the stage that writes it."""
