"""The script that made the stored data runs with an earlier release only."""

collect_ignore = ["make.py"]
