"""An images server: requests of many people that mean nearly the same share their early steps.

Requests go one way: `requests` -> `batcher` (who waits together) -> `engine` (the thread that owns the model) ->
`recovery` (what is tried again, and how) -> `runner` (one wave on the pipeline) -> images. `app` is HTTP around
it and the only importer of the web framework. Nothing here knows the command line or the built-in model; settings
are handed in.
"""
