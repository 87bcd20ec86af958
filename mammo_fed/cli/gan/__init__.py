"""`mammo-fed gan`: train a generator of synthetic masses, draw sets, evaluate and import them."""
