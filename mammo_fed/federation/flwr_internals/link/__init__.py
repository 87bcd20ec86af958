"""What the server does with the messages that lie at its SuperLink."""
