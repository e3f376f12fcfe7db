"""Code shared by training: batches, loop, early stopping, checkpoints."""
