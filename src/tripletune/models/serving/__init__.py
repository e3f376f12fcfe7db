"""What trained models share when they rank: film order, pooling, exact top-k."""
