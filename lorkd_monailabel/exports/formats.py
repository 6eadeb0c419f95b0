"""All formats, and the whole way of an export: what fits together, a new folder, a model card."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.exports import bundle, fused_weights, onnx_graph, program, sat_checkpoint
from lorkd_monailabel.exports.card import model_card
from lorkd_monailabel.exports.compact import DTYPES
from lorkd_monailabel.exports.folders import check_new, new_folder
from lorkd_monailabel.exports.subject import MODALITIES, Subject
from lorkd_monailabel.text_encoder import QueryTable


class Format(NamedTuple):
    """A format.

    Attributes:
        write: subject and folder -> largest difference of probabilities to float32.
        run: subject -> how it is run, in Markdown.
        card: path of its model card in the folder.
        one_modality: whether queries of one modality are inside.
    """

    write: Callable[[Subject, Path], float]
    run: Callable[[Subject], str]
    card: str
    one_modality: bool


FORMATS = {
    "safetensors": Format(fused_weights.write, fused_weights.run, "README.md", False),
    "sat": Format(sat_checkpoint.write, sat_checkpoint.run, "README.md", False),
    "bundle": Format(bundle.write, bundle.run, "docs/README.md", True),
    "onnx": Format(onnx_graph.write, onnx_graph.run, "README.md", False),
    "program": Format(program.write, program.run, "README.md", True),
}


class Exported(NamedTuple):
    """What was written: files, and the largest difference of probabilities to float32 on a patch of noise."""

    files: list[Path]
    difference: float


def export(
    base: Base,
    expert: Expert,
    table: QueryTable,
    folder: Path,
    *,
    form: str,
    modality: str | None = None,
    dtype: str = "float32",
) -> Exported:
    """Write a department into a new folder, whole or not at all.

    Args:
        base: of the expert.
        expert: of the department.
        table: of the queries that the base was trained with.
        folder: to be made.
        form: a key of ``FORMATS``.
        modality: ``ct`` or ``mri``, for the formats of one modality only.
        dtype: in which the weights are kept, a key of ``DTYPES``.

    Raises:
        ValueError: base, expert, table and options do not fit together, or the format can't hold the network.
        OSError: the folder is taken or can't be written.
    """
    check_options(form, modality, dtype)
    check_new(folder)
    subject = Subject(base, expert, table, modality, dtype)
    found = FORMATS[form]
    with new_folder(folder) as draft:
        difference = found.write(subject, draft)
        text = model_card(subject, form=form, run=found.run(subject), difference=difference)
        (draft / found.card).write_text(text, encoding="utf-8")
        if form != "bundle":  # whose own configs hold all of it
            settings = json.dumps(subject.settings(), indent=1, sort_keys=True)
            (draft / "settings.json").write_text(settings + "\n", encoding="utf-8")
    return Exported(sorted(path for path in folder.rglob("*") if path.is_file()), difference)


def check_options(form: str, modality: str | None, dtype: str) -> None:
    """Check options that need no network to be refused.

    Raises:
        ValueError: one is unknown, or two make no sense together.
    """
    for name, value, known in (("format", form, FORMATS), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise ValueError(f"{name} {value!r} is unknown; use one of {', '.join(known)}")
    if modality is not None and modality not in MODALITIES:
        raise ValueError(f"modality {modality!r} is unknown; use one of {', '.join(MODALITIES)}")
    if FORMATS[form].one_modality and modality is None:
        raise ValueError(
            f"format {form} holds queries and intensities of one modality; name it: {' or '.join(MODALITIES)}"
        )
    if form == "sat" and dtype == "int8":
        raise ValueError("SAT's loader knows no int8 weights; export sat as float32, bfloat16 or float16")
