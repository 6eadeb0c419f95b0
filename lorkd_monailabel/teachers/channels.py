"""Teachers with a channel for each structure: what must be known of such a network, and the call itself.

What a network expects and gives is a small JSON object, beside a TorchScript or exported program (``liver.pt2`` has
``liver.pt2.json``), or over what a MONAI Bundle says of itself (``spleen.zip.json``, ``spleen.json`` for a folder)::

    {"channels": ["background", "liver", "kidney_left"], "activation": "softmax", "modality": "ct",
     "intensities": {"from": [-57, 164], "to": [0, 1]}, "spacing_mm": 1.5, "multiple_of": 16}

- ``channels``: names in order, or number -> name; what is no structure of the vocabulary is left alone.
- ``activation``: ``softmax`` (channels exclude each other), ``sigmoid``, or ``none``: the network gives probabilities.
- ``modality``: ``ct``, ``mri`` or ``both``.
- ``intensities``: ``normalised`` (what the students see), ``hounsfield``, ``z_score`` (of the patch), or ``from``
  Hounsfield units ``to`` numbers, clipped there.
- ``spacing_mm``: that it was trained on, one number or three; may be left out.
- ``multiple_of``: what the length of every axis must be divisible by; patches are padded to it. 16, if left out.

Hounsfield units are those of the students' patches, made undone: 200 x + 50, of ``fixed`` intensities alone. They were
clipped to -500..1000, so that air and dense metal have those two values.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorkd_monailabel.teachers.names import structure_named
from lorkd_monailabel.teachers.protocol import unknown_masks
from lorkd_monailabel.volumes import three

ACTIVATIONS = ("softmax", "sigmoid", "none")
INTENSITIES = ("normalised", "hounsfield", "z_score")
MODALITIES = {"ct": ("ct",), "mri": ("mri",), "both": ("ct", "mri")}
KEYS = ("channels", "activation", "modality", "intensities", "spacing_mm", "multiple_of")
MOST_CHANNELS = 4096


@dataclass(frozen=True)
class Channels:
    """What a network with a channel for each structure expects and gives; see the top of this file.

    Attributes:
        structures: canonical name -> its channels.
        activation: one of ``ACTIVATIONS``.
        modalities: that it knows.
        intensities: one of ``INTENSITIES``, or ``(low, high, new low, new high)`` from Hounsfield units.
        spacing_mm: that it was trained on; None if unsaid.
        multiple_of: what the length of every axis is padded to.
    """

    structures: dict[str, tuple[int, ...]]
    activation: str
    modalities: tuple[str, ...]
    intensities: str | tuple[float, float, float, float]
    spacing_mm: tuple[float, float, float] | None = None
    multiple_of: int = 16


def channels_of(record: Mapping[str, Any], where: str) -> Channels:
    """Make sense of the JSON object of a teacher.

    Args:
        record: see the top of this file.
        where: it stands, named in errors.

    Raises:
        ValueError: a key is unknown, missing or of another form, or no channel is a structure of the vocabulary.
    """
    unknown = sorted(set(record) - set(KEYS))
    if unknown:
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}; known are {', '.join(KEYS)}")
    for key in KEYS[:4]:
        if key not in record:
            raise ValueError(f"{where} does not say its {key}; add {key!r} as in the README")
    for key, known in (("activation", ACTIVATIONS), ("modality", tuple(MODALITIES))):
        if record[key] not in known:
            raise ValueError(f"{where} has {key} {record[key]!r}; use one of {', '.join(known)}")
    multiple_of = record.get("multiple_of", 16)
    if type(multiple_of) is not int or not 1 <= multiple_of <= 1024:
        raise ValueError(f"{where} has multiple_of {multiple_of!r}; it must be a whole number in 1..1024")
    try:
        spacing_mm = three(record["spacing_mm"]) if record.get("spacing_mm") is not None else None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where} has spacing_mm {record['spacing_mm']!r}; it must be one number or three") from error
    return Channels(
        structures=_structures(record["channels"], where),
        activation=record["activation"],
        modalities=MODALITIES[record["modality"]],
        intensities=_intensities(record["intensities"], where),
        spacing_mm=spacing_mm,
        multiple_of=multiple_of,
    )


def _structures(channels: Any, where: str) -> dict[str, tuple[int, ...]]:
    named = dict(enumerate(channels)) if isinstance(channels, list) else channels
    if not isinstance(named, Mapping) or not 1 <= len(named) <= MOST_CHANNELS:
        raise ValueError(f"{where} has no list of channels; name them in order, or number -> name")
    found: dict[str, tuple[int, ...]] = {}
    for number, name in named.items():
        if not str(number).isdecimal() or int(number) >= MOST_CHANNELS or not isinstance(name, str):
            raise ValueError(f"{where} names channel {number!r} {name!r}; write a number and a name")
        structure = structure_named(name)
        if structure is not None:
            found[structure] = (*found.get(structure, ()), int(number))
    if not found:
        raise ValueError(f"no channel of {where} is a structure of the vocabulary; rename them under 'channels'")
    return found


def _intensities(told: Any, where: str) -> str | tuple[float, float, float, float]:
    if isinstance(told, str) and told in INTENSITIES:
        return told
    parts = [told.get("from"), told.get("to")] if isinstance(told, Mapping) and set(told) == {"from", "to"} else []
    numbers = [number for part in parts if isinstance(part, list) for number in part]
    if [len(part) for part in parts if isinstance(part, list)] != [2, 2] or not all(
        type(number) in (int, float) and abs(number) < 1e6 for number in numbers
    ):
        raise ValueError(
            f"{where} has intensities {str(told)[:80]!r}; use one of {', '.join(INTENSITIES)} or "
            '{"from": [LOW, HIGH], "to": [LOW, HIGH]}'
        )
    if numbers[0] >= numbers[1]:
        raise ValueError(
            f"{where} has intensities from {numbers[0]} to {numbers[1]}, which is no range; write low first"
        )
    low, high, new_low, new_high = map(float, numbers)
    return low, high, new_low, new_high


class ChannelTeacher:
    """A network with a channel for each structure.

    Args:
        network: ``(1, 1, X, Y, Z)`` to ``(1, C, X, Y, Z)``, or to a tuple that begins with it; in evaluation mode.
        channels: what it expects and gives.
        name: of it, in errors.
        intensities: that the students see, see ``volumes.normalise``.

    Raises:
        ValueError: it needs Hounsfield units, which the students' intensities don't tell.
    """

    def __init__(
        self, network: Callable[[Tensor], Any], channels: Channels, *, name: str, intensities: str = "fixed"
    ) -> None:
        wanted = channels.intensities
        if wanted not in ("normalised", "z_score") and (intensities != "fixed" or channels.modalities != ("ct",)):
            raise ValueError(
                f"{name} needs Hounsfield units, which {intensities!r} intensities of "
                f"{' and '.join(channels.modalities)} don't tell; set data.intensities to fixed and its modality to ct"
            )
        self.network = network
        self.channels = channels
        self.name = name

    def __call__(self, image: Tensor, prompts: Sequence[str], modality: str) -> Tensor:
        """See ``Teacher``."""
        masks = unknown_masks(len(prompts), image)
        rows = [row for row, name in enumerate(prompts) if name in self.channels.structures]
        if not rows or modality not in self.channels.modalities:
            return masks
        shape = image.shape[1:]
        padding = [part for length in reversed(shape) for part in (0, -length % self.channels.multiple_of)]
        padded = torch.nn.functional.pad(self._image(image)[None], padding, mode="replicate")
        output = self._run(padded)[0, :, : shape[0], : shape[1], : shape[2]].float()
        if self.channels.activation == "softmax":
            output = output.softmax(dim=0)
        for row in rows:
            own = output[list(self.channels.structures[prompts[row]])]
            if self.channels.activation == "softmax":  # classes of one structure exclude each other
                masks[row] = own.sum(dim=0)
            else:
                own = own.sigmoid() if self.channels.activation == "sigmoid" else own
                masks[row] = own.amax(dim=0)
        if self.channels.activation == "none" and not bool(((masks[rows] >= 0) & (masks[rows] <= 1)).all()):
            raise ValueError(
                f"{self.name} gives values outside of 0..1, which are no probabilities; set its activation to softmax "
                "or sigmoid"
            )
        return masks

    def _image(self, image: Tensor) -> Tensor:
        wanted = self.channels.intensities
        if wanted == "normalised":
            return image
        if wanted == "z_score":
            return (image - image.mean()) / image.std().clamp(min=1e-6)
        hounsfield = image * 200 + 50
        if isinstance(wanted, str):
            return hounsfield
        low, high, new_low, new_high = wanted
        return (hounsfield.clamp(low, high) - low) / (high - low) * (new_high - new_low) + new_low

    def _run(self, padded: Tensor) -> Tensor:
        try:
            output = self.network(padded)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of a network of others: it says no more of what it can't take
            last = str(error).strip().splitlines()[-1][:200]
            raise ValueError(
                f"{self.name} can't take a patch of {tuple(padded.shape[2:])} ({last}); set data.patch, or its "
                "multiple_of"
            ) from error
        if isinstance(output, tuple | list) and output:
            output = output[0]
        needed = 1 + max(max(own) for own in self.channels.structures.values())
        if not isinstance(output, Tensor) or output.shape[2:] != padded.shape[2:] or output.shape[1] < needed:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"{self.name} gives {found}, expected (1, {needed} or more, {', '.join(map(str, padded.shape[2:]))}); "
                "name its channels as they are, or export it so that it gives one map"
            )
        return output
