"""Images: fetched, decoded and resized, one at a time. A failure is a value, never an exception."""
