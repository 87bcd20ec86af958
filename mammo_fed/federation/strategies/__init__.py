"""How updates become one model."""
