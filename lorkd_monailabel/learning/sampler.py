"""Which department comes next: balanced, repeatable, and the same for any number of processes."""

from collections.abc import Iterator, Mapping

import numpy as np
from torch.utils.data import Sampler

ROUND = 64


def department_at(index: int, weights: Mapping[str, float], *, seed: int) -> str:
    """Say which department the sample of an index shows.

    Within a round of samples every department has its share by weight (largest remainders first, but at least one), in
    random order, so that a batch mixes departments and none waits long.

    Args:
        index: global number of the sample.
        weights: department -> share, any positive numbers.
        seed: of the order.
    """
    names = sorted(weights)
    shares = np.array([weights[name] for name in names], dtype=float)
    shares = shares / shares.sum() * max(ROUND, len(names))
    counts = np.maximum(np.floor(shares), shares > 0).astype(int)
    missing = max(0, max(ROUND, len(names)) - counts.sum())
    counts[np.argsort(counts - shares, kind="stable")[:missing]] += 1
    pool = np.repeat(np.arange(len(names)), counts)
    order = np.random.default_rng((seed, index // len(pool))).permutation(pool)
    return names[order[index % len(pool)]]


class ShareOfSamples(Sampler[int]):
    """The indices of one process: every ``world``-th from ``start``.

    Args:
        start: first global index; a resumed run starts where it stopped.
        stop: end of the global indices.
        rank: number of this process.
        world: number of processes.
    """

    def __init__(self, start: int, stop: int, *, rank: int = 0, world: int = 1) -> None:
        self.indices = range(start + rank, stop, world)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
