"""Requests to images in one process. Knows no HTTP.

A request, held by its client as a `ticket`, goes to `batcher` (which waiting requests form a wave), `model_thread` (the
thread that owns the model), `recovery` (what is tried again after a failure) and `wave_runner` (one wave on the
pipeline). `reuse` replays shared phases from `trajectory_cache`.
"""
