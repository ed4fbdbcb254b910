"""Scores in a notebook, or in any program that has pairs in memory: of a data frame, or of images at hand."""
