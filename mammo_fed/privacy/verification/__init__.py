"""Recomputation of a record's figures in a process of its own, by dp-accounting alone: no accountant of ours is imported."""
