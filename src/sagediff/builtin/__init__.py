"""The models that come along: one folder per world, one code of training. Never used by the core."""
