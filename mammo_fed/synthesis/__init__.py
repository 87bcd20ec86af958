"""Generators of synthetic masses: networks, training, sampling, quality."""
