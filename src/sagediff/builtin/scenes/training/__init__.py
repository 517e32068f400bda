"""Training of the built-in model from nothing: judge, encoder, autoencoder, U-Net, then assembly.

`python -m sagediff.builtin.scenes.training STAGE --out DIR` reproduces a stage; see docs/builtin-model.md.
"""
