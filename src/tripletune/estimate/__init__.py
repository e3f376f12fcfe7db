"""What a training needs: FLOPs and memory from a model's config alone, before anything starts."""
