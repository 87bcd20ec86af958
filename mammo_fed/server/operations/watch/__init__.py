"""What the people who run a server see of it: who is there, how far the run is, and until when."""
