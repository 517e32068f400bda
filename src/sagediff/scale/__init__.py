"""Planning for more prompts than fit the exact way: embeddings on disk, groups cell by cell, memory bounded."""
