"""Truncation: smaller experts of one that is trained, whose ranks are nested, and what each rank keeps of it."""

from dataclasses import replace

import torch
from torch import Tensor

from lorkd_monailabel.experts import Expert
from lorkd_monailabel.networks import nested


def truncate(expert: Expert, rank: int) -> Expert:
    """Make a smaller expert of one that is trained: each layer keeps the leading part of its delta (nested ranks).

    Each layer keeps the same share of its own rank, ``rank / expert.rank``, rounded up. Truncating step by step gives
    what one step gives, where every layer's rank is a multiple of the expert's. With ``expert.rank`` itself the deltas
    stay as they are, but for rounding, and the factors come out ordered.

    Scales stay: alpha over rank belongs to the training that found the factors; another scale would change the size of
    the delta that is kept. Metrics go, for they were the whole expert's. ``fuse`` and ``finetune`` take the result.

    Args:
        expert: left as it is.
        rank: of the new expert, 1 to ``expert.rank``.

    Returns:
        An expert of the same types, not yet published, whose parent is the one given.

    Raises:
        ValueError: a rank out of range, or factors that are damaged.
    """
    ranks = truncated_ranks(expert, rank)
    factors = {
        name: nested.truncated(*pair, ranks[name] * _components(expert, name)) for name, pair in expert.factors.items()
    }
    return replace(
        expert,
        factors=factors,
        ranks=ranks,
        revision=0,
        parent=expert.revision,
        metrics={},
        about={**expert.about, "truncated_from": {"rank": expert.rank, "revision": expert.revision}},
    )


def truncated_ranks(expert: Expert, rank: int) -> dict[str, int]:
    """Give the rank of each layer after ``truncate``.

    Raises:
        ValueError: a rank out of range.
    """
    own = f"{expert.department}/{expert.revision:04d}"
    if expert.rank < 1:
        raise ValueError(f"expert {own} has rank {expert.rank}, below 1, and can't be truncated; train it first")
    if type(rank) is not int or not 1 <= rank <= expert.rank:
        raise ValueError(f"rank {rank!r} of {own} must be a whole number in 1..{expert.rank}; ranks grow by training")
    return {name: -(-each * rank // expert.rank) for name, each in expert.ranks.items()}


def kept_energy(expert: Expert) -> dict[str, Tensor]:
    """Give, for each layer, the energy of its delta (squared Frobenius norm) that each of its ranks keeps.

    Returns:
        Weight name -> ``(1 + rank of the layer,)`` in float64, rising from 0 to the energy of the whole delta.

    Raises:
        ValueError: factors that are damaged.
    """
    energy = {}
    for name, (lora_a, lora_b) in expert.factors.items():
        first = _components(expert, name)
        squares = (expert.scales[name] * nested.singular_values(lora_a, lora_b)) ** 2
        energy[name] = torch.nn.functional.pad(squares.reshape(-1, first).sum(dim=1).cumsum(dim=0), (1, 0))
    return energy


def _components(expert: Expert, name: str) -> int:
    """Check a layer's factors and give the components that each rank has: k0 of its kernel."""
    (lora_a, lora_b), rank = expert.factors[name], expert.ranks[name]
    inner = len(lora_a) if lora_a.dim() == lora_b.dim() == 2 and len(lora_a) == lora_b.shape[1] else 0
    if not 1 <= rank <= inner or inner % rank or not (lora_a.isfinite().all() and lora_b.isfinite().all()):
        raise ValueError(
            f"factors {tuple(lora_a.shape)} and {tuple(lora_b.shape)} of {name} are not finite ones of rank {rank}; "
            f"restore {expert.department}/{expert.revision:04d} from a backup or name another revision"
        )
    return inner // rank
