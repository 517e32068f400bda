"""Offline generation on many workers: work lists, pure, and the one module that knows Ray."""
