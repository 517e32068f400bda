"""Planning for more prompts than exact grouping can hold: embeddings on disk, groups cell by cell, bounded memory."""
