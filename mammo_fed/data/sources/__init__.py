"""Readers of cohorts that are patches already."""
