"""A site's answers: declared, charged, released."""
