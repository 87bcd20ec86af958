"""What every room uses: values as text, private files, processes that are kept running."""
