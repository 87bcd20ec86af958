"""Frozen networks, features, heads, and the trained classifier as one file."""
