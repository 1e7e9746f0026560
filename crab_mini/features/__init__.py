"""The frozen encoders' features, computed once, and the rows that use them."""
