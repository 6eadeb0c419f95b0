"""The model card of an export: what it is, what it needs, where it comes from, how it is run."""

import json
from typing import Any

from lorkd_monailabel.departments import department
from lorkd_monailabel.exports.subject import Subject
from lorkd_monailabel.label_maps import THRESHOLD
from lorkd_monailabel.predictor import OVERLAP

_INTENSITIES = {
    ("fixed", "ct"): "clip to -500..1000 HU, minus 50, by 200, on the grid of the file, before resampling",
    (
        "fixed",
        "mri",
    ): "clip to the 0.5th and 99.5th percentile, then z-score, on the grid of the file, before resampling",
    (
        "sat",
        "ct",
    ): "after resampling: clip to -500..1000 HU, then z-score by mean and deviation inside the smallest box "
    "of all voxels above 0",
    ("sat", "mri"): "after resampling: clip to the 0.5th and 99.5th percentile, then z-score; percentiles, mean and "
    "deviation inside the smallest box of all voxels above 0",
}


def model_card(subject: Subject, *, form: str, run: str, difference: float) -> str:
    """Write the card, in Markdown.

    Args:
        subject: what is exported.
        form: name of the format.
        run: how it is run, in Markdown.
        difference: largest one of probabilities to the network in float32.
    """
    base, expert = subject.base, subject.expert
    spacing = " x ".join(f"{length:g}" for length in expert.spacing_mm)
    rows = [
        ("format", f"{form}, weights kept in {subject.dtype}, computed with in float32"),
        ("department", department(expert.department).name),
        ("expert", f"{subject.name}, rank {expert.rank}"),
        ("base", f"SHA-256 {base.sha256}"),
        ("query space", base.query_space),
        ("modality", ", ".join(subject.modalities())),
        ("orientation", "RAS: axes closest to right, anterior, superior"),
        ("spacing", f"{spacing} mm"),
        ("window", f"{' x '.join(map(str, subject.window))} voxels, overlap {OVERLAP:g}, blended by a Gaussian"),
        *((f"intensities, {each}", _INTENSITIES[base.intensities, each]) for each in subject.modalities()),
        ("threshold", f"a voxel is of a structure above {THRESHOLD:g}; of several, the largest wins"),
        ("difference", f"{difference:.1e} at most, of probabilities to the network in float32, on a patch of noise"),
    ]
    lines = [
        f"# {department(expert.department).name}: {len(expert.structures)} structures",
        "",
        "A department's expert, fused with its base into one plain network, exported by LoRKD for MONAI Label. "
        "**Not for clinical use.**",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {_cell(value)} |" for key, value in rows),
        "",
        "## How to run it",
        "",
        run.rstrip(),
        "",
        "## Structures",
        "",
        "| number | structure | Dice at publication |",
        "|---|---|---|",
        *(
            f"| {number} | {_cell(name)} | {_dice(expert.metrics.get(name))} |"
            for number, name in enumerate(expert.structures, start=1)
        ),
        "",
        "## Sources and licence",
        "",
        f"Sources: {sources(subject)}.",
        "",
        licence(subject),
        "",
        "What base and expert say of themselves:",
        "",
        "```json",
        json.dumps({"base": base.about, "expert": expert.about}, indent=1, sort_keys=True).replace("`", "'"),
        "```",
    ]
    return "\n".join(lines) + "\n"


def sources(subject: Subject) -> str:
    """Name the sources of the training data, as far as they are written down."""
    named: list[str] = []
    for place in (("expert", "sources"), ("base", "sources"), ("base", "training", "data", "sources")):
        found: Any = {"expert": subject.expert.about, "base": subject.base.about}
        for key in place:
            found = found.get(key) if isinstance(found, dict) else None
        named += [" ".join(str(each).split()) for each in found] if isinstance(found, list) else []
    return ", ".join(dict.fromkeys(named)) or "not written down"


def licence(subject: Subject) -> str:
    """Give the licence of the weights, of base and expert, as they state it."""
    stated = {
        " ".join(str(about[key]).split())
        for about in (subject.base.about, subject.expert.about)
        for key in ("licence", "license")
        if about.get(key)
    }
    if stated:
        return "Licence of the weights: " + "; ".join(sorted(stated)) + "."
    return (
        "Neither base nor expert states a licence of the weights. They may be used as their publisher and the terms of "
        "their sources allow; ask before you pass them on."
    )


def _cell(text: object) -> str:
    """Keep a text in its cell."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _dice(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
