"""Declaring, asking, checking and aggregating."""
