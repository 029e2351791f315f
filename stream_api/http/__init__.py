"""The HTTP API: routes, handlers and answers. It does no I/O of its own; `app.py` hands in who does."""
