"""Requests to images: who waits together, the thread that owns the model, the cache, retries. Knows no HTTP."""
