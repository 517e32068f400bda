"""The models that come along: one folder a world, one code of training. Never used by the core."""
