"""One image of a file: its header, its samples, and what they look like."""
