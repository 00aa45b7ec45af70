"""Prices, intervals and tests that the conditions are made of."""
