"""One image: fetched, decoded, resized. A failure is a value, never an exception."""
