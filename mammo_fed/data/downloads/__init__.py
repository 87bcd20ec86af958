"""Public collections, fetched: checked, resumable, and nothing that is there is overwritten."""
