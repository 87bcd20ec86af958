"""Readers of archives of mammograms, one module for each layout."""
