"""What other distributions bring to mammo-fed, found by name and loaded only when a setting asks for it."""
