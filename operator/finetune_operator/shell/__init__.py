"""I/O at the edge: kopf's events in, API calls out. What to do is decided in ``core``."""
