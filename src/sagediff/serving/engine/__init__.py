"""Requests to images in one process. Knows no HTTP.

A request goes from `requests` to `batcher` (which waiting requests form a wave), `model_thread` (the thread that owns
the model), `recovery` (what is tried again after a failure) and `wave_runner` (one wave on the pipeline).
`request_groups` groups a wave, and `reuse` replays shared phases from `trajectory_cache`.
"""
