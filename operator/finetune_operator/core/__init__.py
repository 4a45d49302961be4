"""Decisions, and nothing else: no client, no event loop, no clock. Start reading at ``reconcile.py``."""
