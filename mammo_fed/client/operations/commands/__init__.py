"""What the commands of site-client do, each module imported when one of its commands runs."""
