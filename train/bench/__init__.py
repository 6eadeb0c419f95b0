"""Benchmarks: ``python -m train.bench.eks`` and ``python -m train.bench.switching`` from the root of the repository."""
