"""Engines place workers and do nothing else: they pass files, and no function of theirs changes a number."""
