"""Training code shared by all built-in models."""
