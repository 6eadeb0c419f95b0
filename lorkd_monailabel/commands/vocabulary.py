"""``lorkd vocabulary embed``: the query table of the vocabulary, made anew or extended."""

from __future__ import annotations

import argparse
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from lorkd_monailabel.commands.options import Subparsers, check_free
from lorkd_monailabel.departments import structures

if TYPE_CHECKING:
    from lorkd_monailabel.text_encoder import QueryTable


def add_to(subparsers: Subparsers) -> None:
    """Add the command and the one under it."""
    parser = subparsers.add_parser("vocabulary", help="make the query table", description=__doc__)
    verbs = parser.add_subparsers(metavar="embed", required=True)
    verb = verbs.add_parser("embed", help="names of departments.json -> query vectors", description=__doc__)
    verb.add_argument(
        "--output", type=Path, metavar="FILE", help="default: queries.safetensors here; with --extend, that file"
    )
    verb.add_argument(
        "--extend", type=Path, metavar="FILE", help="add what this table lacks; known rows and the space stay"
    )
    verb.add_argument("--force", action="store_true", help="overwrite the output")
    verb.set_defaults(run=embed)


def embed(arguments: argparse.Namespace) -> int:
    """Build or extend the table, write it, and say whether networks of the package's own table understand it.

    Raises:
        ValueError: the encoder is missing or another than the table's, or the table is damaged.
        OSError: the output is taken or can't be written.
    """
    extended: Path | None = arguments.extend
    output: Path = arguments.output or extended or Path("queries.safetensors")
    check_free(output, force=arguments.force or output == extended)

    from lorkd_monailabel.text_encoder import QUERIES, QueryTable, minilm

    old = None if extended is None else QueryTable.load(extended)
    encode, encoder = minilm()
    names = list(structures())
    if old is None:
        table = QueryTable.build(names, encode, encoder=encoder)
    elif old.encoder != encoder:
        raise ValueError(f"{extended} was made by {old.encoder}, not by {encoder}; install that one, or make it anew")
    else:
        table = old.extended(names, encode)
    write_table(table, output)
    added = len(table.names) - (0 if old is None else len(old.names))
    print(f"{output}: {len(table.names)} names, {added} of them new, space {table.space}")
    own = QueryTable.load(QUERIES)
    if table.space == own.space:
        print("the space is that of the package's own table: its networks understand the queries")
    else:
        print(
            f"the space is not that of the package's own table ({own.space}): networks trained with that one "
            "do not understand these queries; train anew, or keep its space with --extend"
        )
    return 0


def write_table(table: QueryTable, path: Path) -> None:
    """Write a table, whole or not at all, and only where it reads back as the same space.

    Raises:
        OSError: it can't be written.
    """
    from lorkd_monailabel.text_encoder import QueryTable

    draft = path.with_name(f".{uuid.uuid4().hex}.safetensors")
    try:
        table.save(draft)
        assert QueryTable.load(draft).space == table.space
        with open(draft, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
