"""The stages of a run: what they are, in which order they run, and what each is made of."""
