"""What a notebook calls: runs, plans and charges as functions with settings in and frozen results out."""
