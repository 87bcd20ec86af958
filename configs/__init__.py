"""Hydra configuration tree of mammo-fed."""
