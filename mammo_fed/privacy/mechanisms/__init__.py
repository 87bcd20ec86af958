"""Releases: what is summed, clipped and noised."""
