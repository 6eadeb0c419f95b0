"""From a ``DataConfig`` to a stream of samples."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lorkd_monailabel.learning.cases import Case, departments_of, read_cases
from lorkd_monailabel.learning.prepared import PreparedCase, prepare, sweep_drafts
from lorkd_monailabel.learning.samples import Samples
from lorkd_monailabel.networks.segmenter import SIZES, build_segmenter
from lorkd_monailabel.shipped import QUERIES
from lorkd_monailabel.text_encoder import QueryTable
from lorkd_monailabel.volumes import three
from train.settings import DataConfig


def prepared_cases(
    data: DataConfig, departments: Sequence[str] = (), *, taught: bool = False
) -> dict[str, list[PreparedCase]]:
    """Prepare every case of every department, with a progress bar; what is in the cache is read and checked.

    With several workers as many processes prepare side by side.

    Args:
        data: which cases.
        departments: keep these in place of the config's.
        taught: take the masks along that a teacher made before.

    Raises:
        ValueError: a case can't be read, a department has none, or no case has such masks.
    """
    cases = read_cases(data.cases, splits=data.splits, sources=data.sources)
    if not taught:
        cases = [replace(case, teacher=None) for case in cases]
    elif not any(case.teacher for case in cases):
        raise ValueError(f"no case of {data.cases} has a teacher; add one to its lines or name another teacher")
    chosen = {name: _of(name, cases, data.limit) for name in departments or data.departments or departments_of(cases)}
    for name, own in chosen.items():
        if not own:
            raise ValueError(f"department {name!r} has no case in {data.cases}; leave it out or add cases")
    sweep_drafts(Path(data.cache))
    wanted = [partial(prepare, case, **_settings(data, name)) for name, own in chosen.items() for case in own]
    prepared: dict[str, list[PreparedCase]] = {name: [] for name in chosen}
    with tqdm(_made(wanted, data.workers), total=len(wanted), desc="prepare cases", unit="case") as bar:
        for case in bar:
            if isinstance(case, Exception):
                raise case
            prepared[case.department].append(case)
    return prepared


def samples_of(data: DataConfig, prepared: dict[str, list[PreparedCase]], *, stride: int, seed: int) -> Samples:
    """Make the stream of samples of prepared cases."""
    return Samples(
        prepared,
        weights={name: data.weights.get(name, data.weights.get("default", 1.0)) for name in prepared},
        source_weights=data.source_weights,
        patch=data.patch,
        stride=stride,
        max_queries=data.max_queries,
        all_structures=data.all_structures,
        foreground=data.foreground,
        negatives=data.negatives,
        augment=data.augment,
        variations=data.variations,
        rotation_rad=data.rotation_rad,
        scaling=data.scaling,
        seed=seed,
    )


def spacing_of(data: DataConfig, department: str) -> tuple[float, float, float]:
    """Give the spacing of a department's grid along each axis, in mm."""
    return three(data.spacing_mm.get(department, data.spacing_mm.get("default", 3.0)))


def table_of(path: str) -> QueryTable:
    """Load a query table; an empty path is the package's own."""
    return QueryTable.load(path or QUERIES)


def network_numbers(size: str, table: QueryTable) -> dict[str, Any]:
    """Give the numbers of a size of network for the queries of a table.

    Raises:
        ValueError: the size is unknown.
    """
    if size not in SIZES:
        with torch.device("meta"):
            build_segmenter(size)
    return {**SIZES[size], "query_dim": table.vectors.shape[1]}


def structures_of(prepared: Sequence[PreparedCase]) -> tuple[str, ...]:
    """Name the structures of prepared cases that have a voxel somewhere, in the order they are met."""
    return tuple(dict.fromkeys(name for case in prepared for name, voxels in case.centres.items() if len(voxels)))


def sources_of(prepared: Iterable[PreparedCase]) -> list[str]:
    """Name the data sets of prepared cases, sorted."""
    return sorted({case.case.source for case in prepared})


class _Preparations(Dataset[PreparedCase | Exception]):
    """Cases that are prepared when they are asked for; an error is handed over, as a process would else wrap it."""

    def __init__(self, wanted: Sequence[Callable[[], PreparedCase]]) -> None:
        self.wanted = wanted

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, index: int) -> PreparedCase | Exception:
        try:
            return self.wanted[index]()
        except (ValueError, OSError) as error:
            return error


def _made(wanted: Sequence[Callable[[], PreparedCase]], workers: int) -> Iterable[PreparedCase | Exception]:
    """Prepare cases in order, side by side where there are several processes."""
    return DataLoader(
        _Preparations(wanted),
        batch_size=None,
        num_workers=workers if workers > 1 else 0,
        generator=torch.Generator(),  # else the loader draws from the numbers that the network begins with
    )


def _settings(data: DataConfig, department: str) -> dict[str, Any]:
    spacing_mm = spacing_of(data, department)
    x, y, z = (max(side * step / 2, data.margin_mm) for side, step in zip(three(data.patch), spacing_mm, strict=True))
    return {
        "department": department,
        "spacing_mm": spacing_mm,
        "margin_mm": (x, y, z),
        "cache": Path(data.cache),
        "intensities": data.intensities,
    }


def _of(department: str, cases: Sequence[Case], limit: int) -> list[Case]:
    counts: dict[str, int] = defaultdict(int)
    kept = []
    for case in cases:
        if case.of(department) or case.taught_alone(department):
            counts[case.source] += 1
            if not limit or counts[case.source] <= limit:
                kept.append(case)
    return kept
