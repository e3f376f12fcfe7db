"""Film texts as vectors: a retriever by what films are about, and content for the sequence model."""
