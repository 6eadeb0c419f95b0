"""Benchmarks: ``python -m train.bench.eks``, ``.cost``, ``.overhead`` and the others, from the root of the repository."""
