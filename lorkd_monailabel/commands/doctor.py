"""``lorkd doctor``: looks at the installation, the device, the store and what is around it, and says what to do."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import itertools
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lorkd_monailabel import __version__
from lorkd_monailabel.commands.options import Subparsers, add_store, opened_store, store_folder
from lorkd_monailabel.commands.surroundings import (
    Finding,
    about_disk,
    about_gpu,
    about_memory,
    about_port,
    about_studies,
    about_tokens,
)
from lorkd_monailabel.commands.tables import printable
from lorkd_monailabel.commands.tokens import SERVERS_TOKENS
from lorkd_monailabel.departments import departments, structures

if TYPE_CHECKING:
    from lorkd_monailabel.predictor import Predictor
    from lorkd_monailabel.store import ExpertStore
    from lorkd_monailabel.text_encoder import QueryTable

NEEDED = ("torch", "monai", "numpy", "nibabel", "SimpleITK", "safetensors", "tqdm")
GIB = 1024**3
MONAI_LABEL = "0.8.5"


def add_to(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser("doctor", help="check installation, device and store", description=__doc__)
    add_store(parser)
    parser.add_argument("--studies", metavar="STUDIES", help="look at these too: a folder, or a DICOMweb address")
    parser.add_argument("--host", default="127.0.0.1", help="address of --port (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="see whether a server could listen there")
    parser.add_argument("--tokens", type=Path, metavar="FILE", help=f"default: {SERVERS_TOKENS}, where it exists")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings as they come; 1 when something is wrong."""
    problems = 0
    for finding in itertools.chain(findings(arguments.store), surroundings(arguments)):
        problems += not finding.ok
        print(f"{'ok     ' if finding.ok else 'problem'}  {printable(finding.text)}", flush=True)
    print("all is well" if not problems else f"{problems} problem{'s' if problems > 1 else ''}")
    return 1 if problems else 0


def findings(folder: Path | None) -> Iterator[Finding]:
    """Look at everything; what can't be looked at after a problem is left out."""
    yield from _versions()
    if any(_version(name) is None for name in NEEDED):
        return
    yield from _device()
    table = None
    try:
        table = _table()
    except ValueError as error:
        yield Finding(False, str(error))
    if table is not None:
        yield from _about_table(table)
    try:
        store_folder(folder)
    except OSError as error:
        yield Finding(False, str(error))
        return
    yield from _about_store(opened_store(folder), table)


def surroundings(arguments: argparse.Namespace) -> Iterator[Finding]:
    """Look at what is around the store: always at memory and disk, at the rest as far as it is named."""
    yield from about_memory()
    with contextlib.suppress(OSError):  # a store that is missing was told of already
        yield from about_disk(store_folder(arguments.store))
    if arguments.studies:
        yield from about_studies(arguments.studies)
    if arguments.port is not None:
        yield from about_port(arguments.host, arguments.port)
    tokens = arguments.tokens or (SERVERS_TOKENS if SERVERS_TOKENS.exists() else None)
    if tokens:
        yield from about_tokens(tokens)


def _versions() -> Iterator[Finding]:
    yield Finding(True, f"lorkd {__version__}, python {platform.python_version()} ({sys.executable})")
    missing = [name for name in NEEDED if _version(name) is None]
    yield Finding(True, ", ".join(f"{name} {_version(name)}" for name in NEEDED if name not in missing))
    if missing:
        yield Finding(False, f"{', '.join(missing)} is not installed; run: pip install lorkd-monailabel")
    monailabel = _version("monailabel")
    absent = "monailabel is not installed, only lorkd serve needs it: pip install 'lorkd-monailabel[server]'"
    yield Finding(True, f"monailabel {monailabel}" if monailabel else absent)
    if monailabel and monailabel != MONAI_LABEL:
        way_out = f"run: pip install 'monailabel=={MONAI_LABEL}'"
        yield Finding(False, f"the front door is written for monailabel {MONAI_LABEL}, not {monailabel}; {way_out}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device() -> Iterator[Finding]:
    import torch

    from lorkd_monailabel.devices import checked_device, has_fast_bf16

    device = torch.device(checked_device(None))
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        yield Finding(True, f"device cuda: {about.name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free")
    else:
        memory = ""
        if hasattr(os, "sysconf"):
            memory = f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GIB:.1f} GiB of memory"
        yield Finding(True, f"device cpu: {torch.get_num_threads()} threads{memory}; no GPU that torch can use")
    yield from about_gpu(usable=device.type == "cuda")
    number = "bfloat16" if has_fast_bf16(device) else "float32: bfloat16 is not fast there"
    yield Finding(True, f"networks compute in {number}")


def _table() -> QueryTable:
    from lorkd_monailabel.shipped import QUERIES
    from lorkd_monailabel.text_encoder import QueryTable

    return QueryTable.load(QUERIES)


def _about_table(table: QueryTable) -> Iterator[Finding]:
    missing = [name for name in structures() if name not in table]
    shape = f"{len(table.names)} names, {table.vectors.shape[1]} numbers each, space {table.space[:12]}"
    if missing:
        way_out = "run: lorkd vocabulary embed --extend and the table's file"
        yield Finding(False, f"query table: {shape}, but none for {', '.join(missing)}; {way_out}")
    else:
        yield Finding(True, f"query table: {shape}, the whole vocabulary")


def _about_store(store: ExpertStore, table: QueryTable | None) -> Iterator[Finding]:
    own = store.departments()
    if not own:
        yield Finding(False, f"store {store.folder} holds no expert; train one, or name another store with --store")
        return
    yield Finding(True, f"store {store.folder}: experts of {len(own)} of {len(departments())} departments")
    try:
        base = store.base()
        numbers = sum(tensor.numel() for tensor in base.weights.values())
        yield Finding(True, f"base {base.revision:04d}: {numbers / 1e6:.1f} million weights, {base.sha256[:12]}")
    except (ValueError, OSError) as error:
        yield Finding(False, f"base: {error}")
    if table is None:
        return
    from lorkd_monailabel.predictor import Predictor

    predictor = Predictor(store, networks_budget_bytes=0)
    for department in own:
        yield _about_expert(predictor, department)


def _about_expert(predictor: Predictor, department: str) -> Finding:
    store = predictor.store
    name = f"{department}/{store.newest(department):04d}"
    try:
        fused = predictor.fused(department)
        trained = predictor.structures(department)
    except (ValueError, OSError) as error:
        return Finding(False, f"{name}: {error}{_way_back(store, department)}")
    unknown = [each for each in trained if each not in structures() or each not in fused.queries]
    if unknown:
        return Finding(False, f"{name} was trained on {', '.join(unknown)}, unknown here; update lorkd-monailabel")
    spacing = " x ".join(f"{each:g}" for each in fused.spacing_mm[: 1 if len(set(fused.spacing_mm)) == 1 else 3])
    return Finding(True, f"{name}: {len(trained)} structures at {spacing} mm, loads and fuses")


def _way_back(store: ExpertStore, department: str) -> str:
    """Name the command that goes back to the newest older revision that can be used, if any."""
    from lorkd_monailabel.experts import fused_network

    for revision in reversed(store.revisions(department)[:-1]):
        try:
            expert = store.load(department, revision)
            network = fused_network(store.base(expert.base_sha256), expert)
        except (ValueError, OSError):
            continue
        if all(weight.isfinite().all() for weight in network.parameters()):
            return f"; or go back: lorkd experts rollback {department} {revision} --store {store.folder}"
    return ""
