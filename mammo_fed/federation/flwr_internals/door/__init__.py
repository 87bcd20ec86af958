"""The port that the whole network reaches: who may connect, how long a request may take, and how much of one is kept."""
