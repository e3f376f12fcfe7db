"""Film knowledge graph from genres, decades, tags, credits and extra triples."""
