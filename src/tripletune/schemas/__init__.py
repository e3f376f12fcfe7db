"""Columns of the Parquet files passed between stages, one module per producing stage.

Columns with the same meaning in every file, unless the file's own list differs:

Columns:
    user_id: the user, as in the release
    movie_id: the film, as in the release
    rating: stars, as in the release
    timestamp: time of the rating or tag: whole seconds since 1970, UTC
    position: place of the row in the user's order of time, from 0
    unseen: the user is in no fit and in no training example
    purpose: train, valid or test
    cutoff: position of the query's first answer; the query sees rows before it, and no other
    fit: a or b
"""
