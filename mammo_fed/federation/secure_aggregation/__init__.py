"""Sums that hide their terms."""
