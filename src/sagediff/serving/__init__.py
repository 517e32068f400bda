"""Serving: requests of many people, grouped by meaning as they come."""
