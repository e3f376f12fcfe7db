"""What the language model relies on, and how stable its answers are: prompts rendered from changed inputs."""
