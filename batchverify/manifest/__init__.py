"""Manifests: CSV and Parquet files that list pairs, planned and read as Arrow blocks."""
