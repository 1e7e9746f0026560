"""A package, so that the tests' own helpers are imported as such and not as if they were installed."""
