"""Command line: one Typer app, and what it prints."""
