"""Evaluation: one file per metric, networks that see, and the bench that compares ways of sampling.

It knows neither the built-in model nor the command line; what looks at images is handed in (`perception.py`).
"""
