"""Local steps of a site, pretraining, evaluation and statistics."""
