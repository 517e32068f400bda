"""An images server: similar prompts of many clients share their early denoising steps.

`engine/` makes images in one process, `fleet/` uses engines in many processes like one, and `http/` serves either (an
`image_service`) to clients. `config`, `logs`, `metrics` and `failures` are used by all of them. Nothing here knows the
command line or the built-in model; settings are passed in.
"""
