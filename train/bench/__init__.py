"""Benchmarks and trials of strength: ``python -m train.bench.eks`` and so on, from the root of the repository."""
