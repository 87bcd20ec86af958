"""What runs a site on a real machine."""
