"""R-GAT: relational graph attention over the film knowledge graph."""
