"""Where noise comes from, and what is clipped before it."""
