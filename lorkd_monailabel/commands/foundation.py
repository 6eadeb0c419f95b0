"""``lorkd foundation``: brings in what SAT and LoRKD released, from the user's own files, and shows what a file is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorkd_monailabel.commands.experts import described
from lorkd_monailabel.commands.options import Subparsers, check_free
from lorkd_monailabel.commands.tables import printable
from lorkd_monailabel.departments import structures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lorkd_monailabel.text_encoder import QueryTable

FOUNDATION = "foundation.safetensors"
QUERIES = "queries.safetensors"
_YOURS = "they are yours to obtain, and whether you may use them is yours to check; nothing is redistributed here"
NOTICES = {
    "sat": f"licence: SAT states none for its code or its weights; {_YOURS}",
    "lorkd": f"licence: LoRKD's segmentation code is Apache-2.0; its classification code, and SAT's code and weights, "
    f"which these networks and their text encoder come from, state no licence; {_YOURS}",
}
_TERMS = {
    "sat": "none stated by SAT; the user's own file",
    "lorkd": "none stated for the weights by LoRKD and SAT; the user's own file",
}


def add_to(subparsers: Subparsers) -> None:
    """Add the command and those under it."""
    parser = subparsers.add_parser("foundation", help="import SAT's and LoRKD's checkpoints", description=__doc__)
    verbs = parser.add_subparsers(metavar="import | show", required=True)
    taken = verbs.add_parser("import", help="read a checkpoint of sat or lorkd", description=__doc__)
    makers = taken.add_subparsers(metavar="sat | lorkd", required=True)
    sat = makers.add_parser("sat", help="SAT-Nano or SAT-Pro -> a foundation and its query table")
    sat.add_argument("file", type=Path, metavar="FILE", help="SAT's checkpoint (.pth)")
    sat.add_argument("text_encoder", type=Path, metavar="TEXT_ENCODER", help="its text_encoder.pth; the two are a pair")
    sat.add_argument("--output", type=Path, metavar="FOLDER", required=True, help="made if it does not exist")
    sat.set_defaults(run=import_sat)
    lorkd = makers.add_parser("lorkd", help="LoRKD-Nano or LoRKD-Pro -> a base and eight experts in a store")
    lorkd.add_argument("file", type=Path, metavar="FILE", help="LoRKD's checkpoint (.pth)")
    lorkd.add_argument("--text-encoder", type=Path, metavar="FILE", required=True, help="SAT's text_encoder.pth")
    lorkd.add_argument("--store", type=Path, metavar="FOLDER", required=True, help="made if it does not exist")
    lorkd.set_defaults(run=import_lorkd)
    for maker in (sat, lorkd):
        maker.add_argument(
            "--tokenizer", type=Path, metavar="FILE", required=True, help="BioLORD-2023-C's tokenizer.json or vocab.txt"
        )
    shown = verbs.add_parser("show", help="print what a foundation or a checkpoint is")
    shown.add_argument("file", type=Path, metavar="FILE")
    shown.set_defaults(run=show)


def import_sat(arguments: argparse.Namespace) -> int:
    """Write a foundation and its query table into a folder, both or none.

    Raises:
        ValueError: a file is not what it should be, or the two are no pair.
        OSError: the output is taken or can't be written.
    """
    folder: Path = arguments.output
    foundation, queries = folder / FOUNDATION, folder / QUERIES
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder; name another with --output")
    for path in (foundation, queries):
        if folder.is_dir():
            check_free(path, force=False)
    print(NOTICES["sat"], flush=True)

    from lorkd_monailabel.checkpoints.keys import SPACING_MM, WINDOW
    from lorkd_monailabel.checkpoints.sat import read_sat
    from lorkd_monailabel.commands.vocabulary import write_table
    from lorkd_monailabel.experts import Base
    from lorkd_monailabel.store import base_header, write_file

    network, weights = read_sat(arguments.file)
    table = _table(arguments, network)
    about: dict[str, Any] = {"sources": ["SAT"], "spacing_mm": SPACING_MM, "licence": _TERMS["sat"]}
    base = Base(network, weights, WINDOW, table.space, about=about, intensities="sat")
    folder.mkdir(parents=True, exist_ok=True)
    write_table(table, queries)
    try:
        write_file(foundation, base_header(base, "foundation"), base.weights)
    except BaseException:
        queries.unlink()  # a table without its network would only mislead
        raise
    _tell(foundation, network, weights)
    print(f"{queries}: {len(table.names)} names, space {table.space[:12]}")
    return 0


def import_lorkd(arguments: argparse.Namespace) -> int:
    """Publish a release as a base, eight experts and their query table.

    Raises:
        ValueError: a file is not what it should be, or the two are no pair.
        OSError: the store can't be written.
    """
    if arguments.store.exists() and not arguments.store.is_dir():
        raise NotADirectoryError(f"{arguments.store} is not a folder; name another with --store")
    print(NOTICES["lorkd"], flush=True)

    from lorkd_monailabel.checkpoints.lorkd import base_and_experts, read_lorkd
    from lorkd_monailabel.store import ExpertStore

    release = read_lorkd(arguments.file)
    table = _table(arguments, release.network)
    about: dict[str, Any] = {"sources": ["LoRKD"], "licence": _TERMS["lorkd"]}
    base, experts = base_and_experts(release, table, about=about)
    store = ExpertStore(arguments.store)
    store.publish_queries(table)
    number = store.publish_base(base)
    _tell(store.path("base", number), release.network, release.weights)
    for expert in experts:
        revision = store.publish(expert)
        print(f"{expert.department}/{revision:04d}: {len(expert.structures)} structures, rank {expert.rank}")
    print("which structures the checkpoint knows, it does not say: each expert got its department's of the vocabulary")
    return 0


def show(arguments: argparse.Namespace) -> int:
    """Print what a foundation of ours, or a checkpoint of SAT or LoRKD, holds.

    Raises:
        ValueError: it is neither, or damaged.
    """
    path: Path = arguments.file
    if path.suffix == ".safetensors":
        from lorkd_monailabel.store import base_header, load_base

        base = load_base(path, "foundation")
        _tell(path, base.network, base.weights)
        for line in described(json.loads(json.dumps(base_header(base, "foundation")))):
            print(line)
        return 0

    from lorkd_monailabel.checkpoints.lorkd import is_lorkd, read_lorkd
    from lorkd_monailabel.checkpoints.reading import read_state
    from lorkd_monailabel.checkpoints.sat import read_sat

    if is_lorkd(tuple(read_state(path))):
        release = read_lorkd(path)
        _tell(path, release.network, release.weights)
        ranks = {name: min(part.ranks.values()) for name, part in release.parts.items()}
        print(f"LoRKD: ranks {', '.join(f'{name} {rank}' for name, rank in ranks.items())}")
        print(NOTICES["lorkd"])
    else:
        network, weights = read_sat(path)
        _tell(path, network, weights)
        print("SAT: give it with its text encoder to lorkd foundation import sat")
        print(NOTICES["sat"])
    return 0


def _table(arguments: argparse.Namespace, network: Mapping[str, Any]) -> QueryTable:
    """Make the table of the vocabulary, and check that the network reads vectors of its length."""
    from lorkd_monailabel.text_encoder import sat_query_table

    table = sat_query_table(list(structures()), weights=arguments.text_encoder, tokenizer=arguments.tokenizer)
    length = table.vectors.shape[1]
    if length != network["query_dim"]:
        raise ValueError(
            f"{arguments.text_encoder} makes vectors of {length} numbers, the network of {arguments.file} reads "
            f"{network['query_dim']}; give the text encoder that it was published with"
        )
    return table


def _tell(path: Path, network: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    from lorkd_monailabel.checkpoints.keys import size_of

    numbers = sum(tensor.numel() for tensor in weights.values())
    size = size_of(network)
    named = {"pro": "SAT-Nano's and LoRKD-Pro's shape", "nano": "LoRKD-Nano's shape", "sat_pro": "SAT-Pro's shape"}
    print(printable(f"{path}: {numbers:,} weights, {named[size] if size else 'a shape of its own'}"))
