"""Procedural masses, and hospitals of them."""
