"""A model file becomes a `PairModel`, which gives a score for two images."""
