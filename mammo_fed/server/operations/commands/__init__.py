"""What the commands of flower-server do, each module imported when one of its commands runs."""
