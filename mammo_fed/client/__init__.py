"""One hospital's side of a federation."""
