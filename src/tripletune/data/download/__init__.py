"""Download of MovieLens releases, resumed and checked."""
