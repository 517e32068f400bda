"""Bundled models: one folder per world, shared training code. Never used by the core."""
