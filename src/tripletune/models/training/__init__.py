"""What models share when they train: batches, loop, early stopping, checkpoints."""
