"""From a model file to a `PairModel`: two images in, one score out."""
