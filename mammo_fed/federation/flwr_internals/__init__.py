"""Everything that is private to Flower and that we need all the same; tests fail loudly when Flower moves it."""
