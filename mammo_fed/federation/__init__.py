"""What the server and its sites agree on: messages, strategies, secure aggregation, identities."""
