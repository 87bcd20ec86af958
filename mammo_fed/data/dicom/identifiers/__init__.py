"""Whose image is it? What headers, bytes and pixels say of people."""
