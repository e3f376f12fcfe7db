"""Several processes that share the pieces of a ranking, each with a GPU or a part of the processor's threads."""
