"""Item-kNN: films recommended for what the users who liked them also liked."""
