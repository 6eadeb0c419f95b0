"""Benchmarks: ``python -m train.bench.eks``, ``.switching`` and ``.cost``, from the root of the repository."""
