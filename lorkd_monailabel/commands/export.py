"""``lorkd export``: a department, fused, as a folder that other programs load."""

from __future__ import annotations

import argparse
from pathlib import Path

from lorkd_monailabel.commands.options import Subparsers, add_store, opened_store

FORMATS = ("safetensors", "sat", "bundle", "onnx", "program")
DTYPES = ("float32", "bfloat16", "float16", "int8")
MODALITIES = ("ct", "mri")
"""As ``exports`` has them; written here again, for their import takes seconds, which ``--help`` should not."""


def add_to(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser("export", help="write a department for other programs", description=__doc__)
    parser.add_argument("department", metavar="DEPARTMENT", help="such as abdomen")
    parser.add_argument(
        "--format",
        required=True,
        choices=FORMATS,
        help="safetensors: fused weights; sat: SAT's checkpoint; bundle: MONAI Bundle; onnx; program: torch.export",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="new folder")
    parser.add_argument("--revision", type=int, metavar="N", help="of the expert (default: the newest)")
    parser.add_argument("--modality", choices=MODALITIES, help="bundle and program are of one, which must be named")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default: float32)")
    add_store(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Export, and print the files.

    Raises:
        ValueError: there is no such expert, or the options make no sense; nothing is written.
        OSError: the store is missing, or the folder is taken or can't be written.
    """
    store = opened_store(arguments.store)
    store.path(arguments.department, arguments.revision)

    # not before: importing torch takes seconds, in which nothing of the above should have to wait
    from lorkd_monailabel.exports.formats import check_options, export

    check_options(arguments.format, arguments.modality, arguments.dtype)
    expert = store.load(arguments.department, arguments.revision)
    base = store.base(expert.base_sha256)
    found = export(
        base,
        expert,
        store.queries(base.query_space),
        arguments.output,
        form=arguments.format,
        modality=arguments.modality,
        dtype=arguments.dtype,
    )
    for path in found.files:
        print(f"{path} ({path.stat().st_size:,} bytes)")
    print(
        f"{expert.department} revision {expert.revision} as {arguments.format} in {arguments.dtype}: probabilities "
        f"differ by {found.difference:.1e} at most from the network in float32, on a patch of noise"
    )
    return 0
