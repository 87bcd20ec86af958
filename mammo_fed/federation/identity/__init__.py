"""Keys, certificates and the file that describes a site."""
