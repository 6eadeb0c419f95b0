"""Recipes: ``python -m train.<verb> CONFIG [--set key=value ...]`` from the root of the repository."""
