"""Pipelines by name, their LoRA files, and what their folders say of sharing."""
