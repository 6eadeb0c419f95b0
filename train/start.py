"""What a training goes on from: published bases, experts, foundations."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from lorkd_monailabel.experts import Base, Expert, as_float, fused_network, plain_network
from lorkd_monailabel.networks.segmenter import Segmenter
from lorkd_monailabel.store import ExpertStore, load_base


def base_and_experts(path: Path, departments: Iterable[str]) -> tuple[Base, list[Expert]]:
    """Load a store's newest base with its experts, or the file of a base alone.

    Raises:
        ValueError: there is no base.
    """
    if path.is_file():
        return load_base(path), []
    store = ExpertStore(path)
    base = store.base()
    experts = [store.load(name) for name in departments if store.newest(name)]
    return base, [expert for expert in experts if expert.base_sha256 == base.sha256]


def plain(path: Path, departments: Sequence[str]) -> tuple[Base, Segmenter]:
    """Load a plain network: of a foundation's or a base's file, or fused of a store's base and expert.

    Args:
        path: of the file or the store.
        departments: of the training; a store needs a single one.

    Returns:
        What the network's numbers, query table and intensities are, and the network.

    Raises:
        ValueError: there is no such network.
    """
    if path.is_file():
        base = _base_or_foundation(path)
        return base, plain_network(base.network, as_float(base.weights))
    if len(departments) != 1:
        raise ValueError(
            f"start {path} has an expert for each department, the data {len(departments)} departments; name one in "
            "data.departments, or give the file of a base or foundation"
        )
    store = ExpertStore(path)
    expert = store.load(departments[0])
    base = store.base(expert.base_sha256)
    return base, fused_network(base, expert)


def _base_or_foundation(path: Path) -> Base:
    try:
        return load_base(path)
    except ValueError:
        return load_base(path, "foundation")
