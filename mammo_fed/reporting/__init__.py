"""Records, tables, plots and pages of runs."""
