"""Federations of simulated hospitals."""
