"""The adversary who looks at the noise itself: its size, its shape, what repeats in it, and the samples under it."""
