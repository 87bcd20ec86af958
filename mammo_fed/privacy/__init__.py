"""What a release costs, what makes it private, and the ledger that remembers."""
