"""The embedded models, and the module that draws the demo's images."""
