"""A run's summary as one HTML page."""
