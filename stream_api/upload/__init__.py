"""Stage 1: from the HTTP request into the object storage. Read it from `pipeline.py`."""
