"""Command line: one Typer app, its commands and its tables."""
