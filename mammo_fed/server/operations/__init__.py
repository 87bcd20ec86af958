"""What runs a federation's server on a real machine."""
