"""Experiments: recipes in a row, with their configs and the results that they gave."""
