"""How near synthetic images come to real ones, and whether they repeat any."""
