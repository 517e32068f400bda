"""Training of the emoji model and of its judge, from the vendors' npm packages to the assembled pipeline.

`python -m sagediff.builtin.emoji.training STAGE --out DIR` reproduces a stage; see docs/emoji.md.
"""
