"""What a MONAI Bundle says of its network in plain values: channels, activation, modality, intensities, spacing."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

_MODALITIES = {"ct": "ct", "mr": "mri", "mri": "mri"}
_LENGTH = re.compile(r"(\d+)\s*\*\s*n")


def settings_of(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Gather what is there, in the form of ``channels``; what a bundle leaves open is left out.

    Args:
        metadata: of ``configs/metadata.json``.
        config: of ``configs/inference.json``, as data; expressions in it are never looked into.

    Raises:
        ValueError: it is for images of several channels, or of another orientation.
    """
    formats = _table(metadata, "network_data_format")
    image, pred = _table(formats, "inputs", "image"), _table(formats, "outputs", "pred")
    if image.get("num_channels", 1) != 1:
        raise ValueError(
            f"the bundle takes images of {image['num_channels']} channels, but patches have one; give another"
        )
    before, after = _transforms(config, "preprocessing"), _transforms(config, "postprocessing")
    axes = before.get("Orientation", {}).get("axcodes", "RAS")
    if axes != "RAS":
        raise ValueError(f"the bundle takes images of orientation {axes!r}, but patches are RAS; give another")
    channels = _table(pred, "channel_def")
    told: dict[str, Any] = {
        "channels": channels or None,
        "activation": _activation(pred, after.get("Activations", {}), channels),
        "modality": _MODALITIES.get(str(image.get("modality", "")).casefold()),
        "multiple_of": _multiple_of(image.get("spatial_shape")),
    }
    told["intensities"] = _intensities(before, image, told["modality"])
    spacing = before.get("Spacing", {}).get("pixdim")
    told["spacing_mm"] = spacing if _are_numbers(spacing, 3) else None
    return {key: value for key, value in told.items() if value is not None}


def _activation(pred: Mapping[str, Any], found: Mapping[str, Any], channels: Mapping[str, Any]) -> str | None:
    if pred.get("type") == "probabilities":
        return "none"
    for name in ("softmax", "sigmoid"):
        if found.get(name) is True:
            return name
    if found or not channels:
        return None
    return "softmax" if str(channels.get("0")).casefold() == "background" else "sigmoid"


def _intensities(before: Mapping[str, Mapping[str, Any]], image: Mapping[str, Any], modality: str | None) -> Any:
    scaled = before.get("ScaleIntensityRange")
    if scaled is not None:
        ends = [scaled.get(name) for name in ("a_min", "a_max", "b_min", "b_max")]
        return {"from": ends[:2], "to": ends[2:]} if _are_numbers(ends, 4) and scaled.get("clip") is True else None
    if any(name.startswith("ScaleIntensity") for name in before):
        return None
    if "NormalizeIntensity" in before:
        return "z_score" if not {"subtrahend", "divisor"} & set(before["NormalizeIntensity"]) else None
    reach = image.get("value_range")
    if modality == "ct" and isinstance(reach, list) and _are_numbers(reach, 2) and min(reach) <= -100:
        return "hounsfield"  # a range that begins with air: nobody scaled it
    return "z_score" if modality == "mri" else None


def _multiple_of(shape: Any) -> int | None:
    if not isinstance(shape, list) or not shape:
        return None
    lengths = [length if type(length) is int else _LENGTH.fullmatch(str(length)) for length in shape]
    if all(type(length) is int for length in lengths):
        common = math.gcd(*lengths)  # type: ignore[arg-type]
        return min(common & -common, 32) if common > 0 else None  # what halving five times over needs
    numbers = [int(length[1]) for length in lengths if isinstance(length, re.Match)]
    return min(math.lcm(*numbers), 1024) if numbers and len(numbers) == len(lengths) and min(numbers) > 0 else None


def _transforms(config: Mapping[str, Any], stage: str) -> dict[str, Mapping[str, Any]]:
    """Class name without MONAI's ``d`` -> arguments, of the transforms of a stage."""
    return {
        re.sub(r"(Dict|d|D)$", "", str(each["_target_"]).rpartition(".")[2]): each
        for each in _listed(_table(config, stage).get("transforms"))
    }


def _listed(transforms: Any) -> Iterator[Mapping[str, Any]]:
    for each in transforms if isinstance(transforms, list) else ():
        if isinstance(each, Mapping) and "_target_" in each and not each.get("_disabled_"):
            yield each


def _table(place: Any, *keys: str) -> Mapping[str, Any]:
    for key in keys:
        place = place.get(key) if isinstance(place, Mapping) else None
    return place if isinstance(place, Mapping) else {}


def _are_numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(type(each) in (int, float) for each in value)
