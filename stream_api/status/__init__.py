"""Redis: what clients may see of an upload, as a copy that may be lost at any moment."""
