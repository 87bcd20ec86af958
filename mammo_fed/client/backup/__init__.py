"""A site's folder in one file, and back: refused where that would forget what was charged."""
