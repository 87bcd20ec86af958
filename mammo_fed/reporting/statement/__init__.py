"""One page for one patient of one site: what was done, who could learn from it, and how much more likely at most."""
