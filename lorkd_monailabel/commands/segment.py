"""``lorkd segment``: one volume and a prompt -> a label map beside you and a table of what was found."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lorkd_monailabel.commands.options import Subparsers, add_device, add_store, check_free, opened_store, store_folder
from lorkd_monailabel.commands.tables import printable, table
from lorkd_monailabel.everything import understood
from lorkd_monailabel.prompts import AUTO, NotUnderstood

if TYPE_CHECKING:
    from lorkd_monailabel.answers import Answer

OUTPUTS = (".nii.gz", ".nii", ".nrrd", ".mha")
LAYERS = ".seg.nrrd"
MERGE = "merge"  # the stage after a department's windows
IMAGES = (*OUTPUTS, ".mhd")
HEADER = ("phrase", "structure", "department", "revision", "value", "voxels", "ml", "status")


def add_to(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser("segment", help="segment a volume by text", description=__doc__)
    parser.add_argument("image", type=Path, metavar="IMAGE", help="NIfTI, NRRD, MetaImage, or a DICOM series' folder")
    parser.add_argument("--text", required=True, help='what to segment: "left kidney; liver", or "everything"')
    parser.add_argument("--department", default=AUTO, help="the only department to ask (default: auto)")
    parser.add_argument("--modality", choices=("auto", "ct", "mri"), default="auto", help="default: auto")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"label map, {', '.join(OUTPUTS)}, or {LAYERS} to keep overlaps "
        "(default: IMAGE's name + _lorkd.nii.gz in the current folder)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite the label map")
    add_store(parser)
    add_device(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Segment, write the label map, print the table.

    Raises:
        ValueError: prompt, image, store, device or output is not what it must be; nothing is written.
        OSError: image or store is missing, or the label map can't be written.
    """
    image: Path = arguments.image
    output: Path = arguments.output or default_output(image)
    check_paths(image, output, force=arguments.force)
    store_folder(arguments.store)
    targets, refused = understood(arguments.text, arguments.department, _known_in(arguments.store))
    if not targets:
        raise ValueError(_nothing_understood(refused))

    # not before: importing torch takes seconds, in which nothing of the above should have to wait
    import torch

    from lorkd_monailabel.devices import checked_device
    from lorkd_monailabel.label_maps import write_label_map
    from lorkd_monailabel.layers import write_layers
    from lorkd_monailabel.predictor import Predictor
    from lorkd_monailabel.volumes import read_volume

    began = time.monotonic()
    predictor = Predictor(opened_store(arguments.store), device=checked_device(arguments.device))
    if image.is_dir():
        _silence_itk()
    volume = read_volume(image, arguments.modality)
    try:
        with bar() as progress:
            keep = output.name.lower().endswith(LAYERS)
            prediction = predictor.segment(volume, targets, progress=progress, keep_overlaps=keep)
    except torch.OutOfMemoryError as error:
        raise ValueError(f"the memory of {predictor.device} is too small for {image}; use --device cpu") from error
    if prediction.layers is not None:
        write_layers(prediction.layers, output)
    else:
        write_label_map(prediction.label_map, output)
    print(table(HEADER, rows(prediction.answers)))
    print(f"{output}: read as {volume.modality}, on {predictor.device}, {time.monotonic() - began:.1f} s")
    if prediction.fallback:
        print(f"lorkd: {prediction.fallback}", file=sys.stderr)
    for each in refused:
        print(f"lorkd: {printable(each.message)}", file=sys.stderr)
    return 0


def _known_in(folder: Path | None) -> Callable[[str], Sequence[str]]:
    """Give what names the structures of a department's expert; it opens the store only when it is asked."""

    def known(department: str) -> Sequence[str]:
        store = opened_store(folder)
        revision = store.served(department)
        return () if revision is None else store.header(department, revision)["structures"]

    return known


def rows(answers: Sequence[Answer]) -> list[tuple[object, ...]]:
    """Give the table's row of each answer, under ``HEADER``."""
    return [
        (each.phrase, each.structure, each.department, each.revision, each.value, each.voxels, each.ml, each.status)
        for each in answers
    ]


def default_output(image: Path) -> Path:
    """Name a label map in the current folder after its image: ``ct.nii.gz`` gives ``ct_lorkd.nii.gz``."""
    name = image.resolve().name
    extension = next((known for known in IMAGES if name.lower().endswith(known)), "")
    return Path(f"{name[: len(name) - len(extension)]}_lorkd.nii.gz")


def check_paths(image: Path, output: Path, *, force: bool) -> None:
    """Check, before the work, that there is an image and that the label map may be written.

    Raises:
        OSError: the image or the output's folder does not exist, or the output is taken.
        ValueError: the output's extension is unknown, or it is the image.
    """
    if not image.exists():
        raise FileNotFoundError(f"{image} does not exist; check the path")
    if not output.name.lower().endswith(OUTPUTS):
        raise ValueError(f"output {output} must end in one of {', '.join(OUTPUTS)}; choose one of these")
    if output.exists() and output.samefile(image):
        raise ValueError(f"output {output} is the image itself; name another file")
    check_free(output, force=force)


@contextmanager
def bar() -> Iterator[Callable[[str, int, int], bool]]:
    """Show windows done of each department, on the standard error if that is a terminal."""
    from tqdm import tqdm

    with tqdm(unit="window", disable=not sys.stderr.isatty(), dynamic_ncols=True, leave=False) as shown:

        def progress(stage: str, done: int, total: int) -> bool:
            if stage != MERGE:
                if done == 0:
                    shown.set_description(stage, refresh=False)
                    shown.reset(total)
                shown.update(done - shown.n)
            return True

        yield progress


def _nothing_understood(refused: Sequence[NotUnderstood]) -> str:
    messages = [printable(each.message) for each in refused]
    if len(messages) == 1:
        return messages[0]
    return f"none of the {len(messages)} phrases is understood: {' | '.join(messages)}"


def _silence_itk() -> None:
    """Keep ITK from writing its own lines about a folder; what is wrong comes as an error."""
    import SimpleITK as sitk

    sitk.ProcessObject.GlobalWarningDisplayOff()
