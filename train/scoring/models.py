"""Models that are evaluated: a store of experts, a foundation, or a folder of specialists, all served from a store."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from lorkd_monailabel.departments import department
from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.shipped import QUERIES
from lorkd_monailabel.store import BASE, ExpertStore, load_base
from lorkd_monailabel.text_encoder import QueryTable
from lorkd_monailabel.volumes import three
from train.bench.counters import QUERIES as WINDOW_QUERIES
from train.bench.counters import meta_segmenter, operations

FOUNDATION = "foundation.safetensors"
"""What ``train.pretrain`` calls its file."""

Spacings = Mapping[str, float | list[float]]


@dataclass(frozen=True)
class Model:
    """What is evaluated.

    Attributes:
        kind: ``store``, ``foundation`` or ``specialists``.
        store: that serves it.
        revisions: department that it has something for -> revision of the expert that is served.
        sha256: of the files that are used.
    """

    kind: str
    store: ExpertStore
    revisions: dict[str, int]
    sha256: str


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        parameters: of everything that its departments need together.
        parameters_of_one: of the plain network that one department runs; the largest, where they differ.
        gflops: of that network's forward pass of a window, two operations for a multiply-add, in 1e9.
        window: in voxels.
        queries: asked at once in that pass.
        ranks: department -> rank of its expert; 0 without factors.
    """

    parameters: int
    parameters_of_one: int
    gflops: float
    window: tuple[int, int, int]
    queries: int
    ranks: dict[str, int]


def open_model(
    path: Path, *, departments: Collection[str], folder: Path, spacing_mm: Spacings, queries: str = ""
) -> Model:
    """Open what a path is.

    A foundation stands in for an expert of every department, with every structure that its query table names: it is
    published in a store of its own with experts that change nothing. So does a specialist for its own department.

    Args:
        path: of a store; of a foundation (``.safetensors``); or of a folder of specialists: foundations of one
            department each, ``<department>.safetensors`` or ``<department>/foundation.safetensors``.
        departments: that are asked for.
        folder: empty, for the store that is made of foundations.
        spacing_mm: department, or ``default``, -> spacing of a foundation's grid, in place of what its header says.
        queries: path of a foundation's query table; empty for the package's own.

    Raises:
        ValueError: there is no model, it is damaged, or a foundation does not say its spacing.
    """
    store = ExpertStore(path)
    if path.is_dir() and store.revisions(BASE):
        served = {name: store.served(name) or 0 for name in store.departments() if name in departments}
        files = [store.path(*each) for each in (*served.items(), *((BASE, each) for each in store.revisions(BASE)))]
        return Model("store", store, served, _sha256(files))
    kind, found = ("foundation", dict.fromkeys(departments, path)) if path.is_file() else ("specialists", {})
    if path.is_dir():
        found = dict(_specialists(path, departments))
    if not found:
        raise ValueError(
            f"{path} is no model: give a store (a folder with base/), a foundation (.safetensors), or a folder of "
            "<department>.safetensors"
        )
    table = QueryTable.load(queries or QUERIES)
    store = ExpertStore(folder)
    bases = {file: load_base(file, "foundation") for file in dict.fromkeys(found.values())}
    for base in bases.values():
        if base.query_space != table.space:
            raise ValueError(f"{path} was trained with another query table; set queries to its own")
        store.publish_base(base)
    if table.space != QueryTable.load(QUERIES).space:
        store.publish_queries(table)
    revisions = {
        name: store.publish(stand_in(bases[file], name, table=table, spacing_mm=spacing_mm))
        for name, file in found.items()
    }
    return Model(kind, store, revisions, _sha256(list(bases)))


def stand_in(base: Base, name: str, *, table: QueryTable, spacing_mm: Spacings) -> Expert:
    """Make an expert of a department that changes nothing of a foundation.

    Raises:
        ValueError: neither the foundation nor ``spacing_mm`` says the spacing of its grid.
    """
    spacings = {**_trained_on(base), **spacing_mm}
    spacing = spacings.get(name, spacings.get("default"))
    if spacing is None:
        raise ValueError(
            f"the foundation does not say its spacing for {name}; set spacing_mm = {{ default = … }} in mm"
        )
    return Expert(
        department=name,
        base_sha256=base.sha256,
        factors={},
        scales={},
        ranks={},
        spacing_mm=three(spacing),
        structures=tuple(each.name for each in department(name).structures if each.name in table),
    )


def cost_of(model: Model) -> Cost:
    """Count parameters and operations of a model's departments."""
    bases: dict[str, Base] = {}
    extra = 0
    ranks = {}
    for name, revision in model.revisions.items():
        expert = model.store.load(name, revision)
        bases.setdefault(expert.base_sha256, model.store.base(expert.base_sha256))
        extra += sum(a.numel() + b.numel() for a, b in expert.factors.values())
        extra += sum(norm.numel() for norm in expert.norms.values())
        ranks[name] = expert.rank
    sizes = {sha256: sum(tensor.numel() for tensor in base.weights.values()) for sha256, base in bases.items()}
    largest = max(bases.values(), key=lambda base: (sizes[base.sha256], prod(base.window)))
    segmenter = meta_segmenter(**largest.network)
    x, y, z = (-(-side // segmenter.stride) * segmenter.stride for side in largest.window)
    return Cost(
        parameters=sum(sizes.values()) + extra,
        parameters_of_one=max(sizes.values()),
        gflops=operations(segmenter, (x, y, z), WINDOW_QUERIES) / 1e9,
        window=(x, y, z),
        queries=WINDOW_QUERIES,
        ranks=ranks,
    )


def _specialists(path: Path, departments: Collection[str]) -> Iterator[tuple[str, Path]]:
    for name in departments:
        files = [file for file in (path / f"{name}.safetensors", path / name / FOUNDATION) if file.is_file()]
        if files:
            yield name, files[0]


def _trained_on(base: Base) -> dict[str, Any]:
    """Give the spacings that a foundation's header tells: of our training, or one for all departments, as SAT's."""
    about = base.about
    for key in ("training", "data", "spacing_mm"):
        about = about.get(key) if isinstance(about, dict) else None  # type: ignore[assignment]
    if isinstance(about, dict):
        return about
    return {"default": base.about["spacing_mm"]} if "spacing_mm" in base.about else {}


def _sha256(files: Collection[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.parent.name}/{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()
