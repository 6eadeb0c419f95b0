"""``lorkd cases``: lists of cases for training, made of what other tools hold, shown and checked."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lorkd_monailabel.commands.options import Subparsers
from lorkd_monailabel.commands.tables import printable, table

if TYPE_CHECKING:
    from lorkd_monailabel.case_lists.found import Found
    from lorkd_monailabel.learning.cases import Case

LAYOUTS = {
    "decathlon": "a task of the Medical Segmentation Decathlon: dataset.json, imagesTr, labelsTr",
    "nnunet": "a raw data set of nnU-Net: dataset.json, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz",
    "sat-ds": "JSON lines of SAT-DS after its convert_to_npy.py",
    "monailabel": "a datastore of MONAI Label: datastore_v2.json, labels/final",
    "bids": "a BIDS data set with segmentations under derivatives",
}
CHANNELS = ("decathlon", "nnunet", "bids")
VOLUMES = ("decathlon", "sat-ds", "bids")
LABELS = ("monailabel", "bids")
SPLITS = ("train", "validation", "test")

Item = TypeVar("Item")


def add_to(subparsers: Subparsers) -> None:
    """Add the command and those under it."""
    parser = subparsers.add_parser("cases", help="make, show and check lists of cases", description=__doc__)
    verbs = parser.add_subparsers(metavar="convert | show | check", required=True)
    layouts = verbs.add_parser("convert", help="make a list of what another tool holds").add_subparsers(
        metavar=" | ".join(LAYOUTS), required=True
    )
    for layout, what in LAYOUTS.items():
        _add_layout(layouts.add_parser(layout, help=what, description=what), layout)
    shown = verbs.add_parser("show", help="count cases of each structure and split")
    shown.add_argument("list", type=Path, metavar="FILE", help="list of cases")
    shown.set_defaults(run=show)
    checked = verbs.add_parser("check", help="find what will hurt a training: one sentence a fault, exit status 1")
    checked.add_argument("list", type=Path, metavar="FILE", help="list of cases")
    checked.add_argument("--workers", type=int, default=2, metavar="N", help="volumes read at a time (default: 2)")
    checked.set_defaults(run=check)


def _add_layout(parser: argparse.ArgumentParser, layout: str) -> None:
    parser.add_argument("source", type=Path, metavar="FILE" if layout == "sat-ds" else "FOLDER")
    parser.add_argument("--output", type=Path, metavar="FILE", required=True, help="the list, such as cases.jsonl")
    parser.add_argument("--overwrite", action="store_true", help="replace the list and volumes that exist")
    names = parser.add_argument_group("names of structures")
    names.add_argument(
        "--map", action="append", default=[], metavar="NAME=STRUCTURE", help="what one of their names is here"
    )
    names.add_argument("--skip", action="append", default=[], metavar="NAME", help="leave one of their names out")
    names.add_argument("--skip-unknown", action="store_true", help="leave out all names that are not understood")
    splits = parser.add_argument_group("splits, where the layout names none")
    splits.add_argument("--validation", type=float, default=0.2, metavar="SHARE", help="of the subjects (default: 0.2)")
    splits.add_argument("--seed", type=int, default=0, metavar="N", help="another choice of them (default: 0)")
    splits.add_argument("--splits", type=Path, metavar="FILE", help="JSON: split -> subjects, or nnU-Net's folds")
    splits.add_argument("--fold", type=int, default=0, metavar="N", help="of nnU-Net's folds (default: 0)")
    parser.add_argument("--modality", choices=("ct", "mri", "auto"), default="", help="default: what the layout says")
    parser.add_argument("--name", default="", help="of the data set, as source of the cases (default: the layout's)")
    if layout in CHANNELS:
        parser.add_argument("--channel", default="", help="which of several images of a case: its name or number")
    if layout in VOLUMES:
        parser.add_argument("--volumes", type=Path, metavar="FOLDER", help="for volumes that have to be written")
    if layout in LABELS:
        parser.add_argument(
            "--label", action="append", default=[], metavar="NAME=VALUE", help="what a value is, where it isn't said"
        )
    if layout == "monailabel":
        parser.add_argument("--tag", default="final", help="of the labels (default: final)")
        parser.add_argument("--values-by", choices=("idx", "position"), default="", help="what a segment's value is")
    if layout == "bids":
        parser.add_argument("--only", default="*", metavar="PATTERN", help='of file names, such as "*desc-manual*"')
    parser.set_defaults(run=convert, layout=layout, channel="", volumes=None, label=[])


def convert(arguments: argparse.Namespace) -> int:
    """Make a list.

    Raises:
        ValueError: the layout is not what it should be, or names are not understood; nothing is written.
        OSError: the output exists already, or can't be written.
    """
    from lorkd_monailabel.case_lists import records
    from lorkd_monailabel.case_lists.naming import choices_of, structures_of

    settings = records.Settings(
        choices=choices_of(arguments.map, arguments.skip, skip_unknown=arguments.skip_unknown),
        modality=arguments.modality,
        source=arguments.name,
        validation=arguments.validation,
        seed=arguments.seed,
        splits={} if arguments.splits is None else records.splits_in(arguments.splits, arguments.fold),
    )
    found = _found(arguments)
    made = records.convert(
        found,
        settings,
        arguments.output,
        volumes=arguments.volumes,
        overwrite=arguments.overwrite,
        progress=lambda cases: _bar(cases, len(found)),
    )
    listed = {name for record in made for name in record["structures"]}
    splits = Counter(record["split"] for record in made)
    print(
        f"{arguments.output}: {len(made)} cases ({', '.join(f'{split}: {count}' for split, count in splits.items())}), "
        f"structures: {len(listed)}"
    )
    names = structures_of((name for case in found for name in case.labels), settings.choices)
    left = sorted(name for name, ours in names.items() if not ours)
    if left:
        print(f"lorkd: left out: {', '.join(map(printable, left))}", file=sys.stderr)
    if len(made) < len(found):
        print(f"lorkd: {len(found) - len(made)} cases have no structure that is left", file=sys.stderr)
    return 0


def show(arguments: argparse.Namespace) -> int:
    """Print a table of structures and splits, with the number of cases that list a structure.

    Raises:
        ValueError: the list is missing, or a line is not a case.
    """
    from lorkd_monailabel.learning.cases import read_cases

    cases = read_cases(arguments.list)
    splits = sorted({case.split for case in cases}, key=lambda split: (split not in SPLITS, split))
    print(table(("department", "structure", *splits, "cases", "sources"), list(_counts(cases, splits))))
    print()
    sources = Counter((case.source, case.modality, case.split) for case in cases)
    rows = [
        (source, modality, *(sources[source, modality, split] for split in splits))
        for source, modality in sorted({key[:2] for key in sources})
    ]
    print(table(("source", "modality", *splits), rows))
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Print what will hurt, faults before warnings; 1 when there is a fault.

    Raises:
        ValueError: the list can't be read.
    """
    from lorkd_monailabel.case_lists.check import check as check_list

    lines, findings = check_list(arguments.list, workers=arguments.workers, progress=_bar)
    for each in findings:
        print(printable(f"{'fault' if each.fault else 'warning'}: {each}"))
    faults = sum(each.fault for each in findings)
    print(f"{arguments.list}: {len(lines)} cases, faults: {faults}, warnings: {len(findings) - faults}")
    return 1 if faults else 0


def _found(arguments: argparse.Namespace) -> list[Found]:
    from lorkd_monailabel.case_lists.bids import bids
    from lorkd_monailabel.case_lists.datastore import datastore
    from lorkd_monailabel.case_lists.decathlon import decathlon
    from lorkd_monailabel.case_lists.nnunet import nnunet
    from lorkd_monailabel.case_lists.sat_ds import sat_ds

    source: Path = arguments.source
    labels = _labels(arguments.label)
    if arguments.layout == "decathlon":
        return decathlon(source, channel=arguments.channel)
    if arguments.layout == "nnunet":
        return nnunet(source, channel=arguments.channel)
    if arguments.layout == "sat-ds":
        return sat_ds(source)
    if arguments.layout == "monailabel":
        return datastore(source, tag=arguments.tag, labels=labels, by=arguments.values_by)
    return bids(source, channel=arguments.channel, only=arguments.only, labels=labels)


def _labels(texts: list[str]) -> dict[str, tuple[int, ...]]:
    from lorkd_monailabel.case_lists.found import gathered

    pairs = [[part.strip() for part in text.rpartition("=")[::2]] for text in texts]
    for text, (name, value) in zip(texts, pairs, strict=True):
        if not name or not value.isdecimal():
            raise ValueError(f'--label {text!r} must be "NAME=VALUE", such as "liver=1"')
    return gathered((name, int(value)) for name, value in pairs)


def _counts(cases: list[Case], splits: list[str]) -> Iterator[tuple[object, ...]]:
    counts = Counter((case.departments[name], name, case.split) for case in cases for name in case.structures)
    for department, name in sorted({key[:2] for key in counts}):
        own = [counts[department, name, split] for split in splits]
        yield department, name, *own, sum(own), len({case.source for case in cases if name in case.structures})


def _bar(items: Iterable[Item], total: int) -> Iterable[Item]:
    """Show the cases done, on the standard error if that is a terminal."""
    from tqdm import tqdm

    return tqdm(items, total=total, unit="case", disable=not sys.stderr.isatty(), dynamic_ncols=True, leave=False)
