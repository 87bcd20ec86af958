"""The command line `mammo-fed`."""
