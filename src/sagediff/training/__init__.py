"""Training that teaches a model to share: the SAGE objective, and standard fine-tuning beside it.

`sagediff train` is its face; docs/training.md explains the terms.
"""
