"""The report: a run's summary as one HTML page."""
