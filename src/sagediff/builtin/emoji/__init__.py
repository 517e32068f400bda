"""The emoji model: real artwork of several vendors, real captions, a frozen sentence encoder.

Order of the stages: `data` -> `autoencoder` -> `cache` -> `train` -> `assemble`.
"""
