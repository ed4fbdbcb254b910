"""What a run writes: its directory, its scores, its store of embeddings."""
