"""A site's durable account of what was spent."""
