"""Checks of the privacy claim: the sensitivity gate."""
