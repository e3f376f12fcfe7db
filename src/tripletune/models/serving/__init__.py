"""Code shared by ranking with trained models: film order, pooling, exact top-k."""
