"""A generator that learns from one site's patients."""
