"""The embedded models, and what made the demo's data."""
