"""Tests of the overlays: which slice is shown, and what is drawn on it."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import Tensor

from lorkd_monailabel.learning.samples import Sample, Samples
from train.reporting.overlays import Overlay, draw, first_samples, load_overlays, overlays_of, save_overlays
from train.reporting.picture import color_of


def sample(department: str, names: tuple[str, ...], *slices: list[int], annotated: Tensor | None = None) -> Sample:
    """A sample of 8 x 6 x 4 voxels; ``slices`` gives each name's number of voxels in every slice along Z."""
    masks = torch.zeros(len(names), 8, 6, 4)
    for row, counts in enumerate(slices):
        for position, count in enumerate(counts):
            masks[row, ..., position].view(-1)[row * 20 : row * 20 + count] = 1
    image = torch.arange(4.0).expand(1, 8, 6, 4)
    return Sample(department, "ct", names, image, masks, annotated)


def itself(own: Sample) -> Tensor:
    return own.masks


def test_the_slice_with_most_structures_then_most_voxels_is_shown_for_each_department() -> None:
    two = sample("abdomen", ("liver", "spleen"), [9, 2, 3, 0], [0, 2, 3, 0])
    one = sample("abdomen", ("liver", "spleen"), [20, 0, 0, 0], [0, 0, 0, 0])
    head = sample("brain", ("brainstem",), [0, 0, 0, 5])
    found = overlays_of([one, two, head], itself)
    assert [own.title for own in found] == ["Brain, CT", "Abdomen, CT"]
    brain, abdomen = found
    assert abdomen.names == ("liver", "spleen")
    assert (abdomen.image == 2).all()
    assert abdomen.image.shape == (8, 6)
    assert abdomen.reference.sum(axis=(1, 2)).tolist() == [3, 3]
    assert (brain.image == 3).all()


def test_a_department_without_a_voxel_has_none_and_is_not_asked_about() -> None:
    asked = []

    def predict(own: Sample) -> Tensor:
        asked.append(own.department)
        return own.masks

    empty = sample("thorax", ("heart",), [0, 0, 0, 0])
    full = sample("abdomen", ("liver",), [1, 0, 0, 0])
    assert len(overlays_of([empty, full, full], predict)) == 1
    assert asked == ["abdomen"]


def test_what_was_not_annotated_or_is_nowhere_is_left_out() -> None:
    names = ("liver", "spleen", "pancreas", "aorta")
    annotated = torch.tensor([True, False, True, True])
    own = sample("abdomen", names, [4, 0, 0, 0], [6, 6, 6, 6], [0] * 4, [0] * 4, annotated=annotated)
    probabilities = torch.zeros(4, 8, 6, 4)
    probabilities[3, 0, 0, 0] = 0.6
    probabilities[0] = 0.5  # is not more than one half
    (found,) = overlays_of([own], lambda _: probabilities)
    assert found.names == ("liver", "aorta")
    assert found.reference.sum(axis=(1, 2)).tolist() == [4, 0]
    assert found.prediction.sum(axis=(1, 2)).tolist() == [0, 1]


def test_first_samples_are_the_same_ones_and_of_every_department(make_samples: Callable[..., Samples]) -> None:
    stream = make_samples("abdomen", "thorax", "spine")
    first, again = first_samples(stream, each=2), first_samples(stream, each=2)
    assert sorted(own.department for own in first) == ["abdomen"] * 2 + ["spine"] * 2 + ["thorax"] * 2
    assert all(torch.equal(a.image, b.image) and a.names == b.names for a, b in zip(first, again, strict=True))


def square(low: int, high: int) -> np.ndarray:
    mask = np.zeros((1, 20, 20), dtype=bool)
    mask[:, low:high, low:high] = True
    return mask


def test_reference_and_prediction_are_outlined_in_the_structures_colour() -> None:
    image = np.random.default_rng(0).normal(size=(20, 20))
    panels = []
    for reference, prediction in ((square(4, 16), square(0, 0)), (square(0, 0), square(0, 20))):
        picture = imread(io.BytesIO(draw(Overlay("one", image, reference, prediction, ("liver",)))))[..., :3]
        close = np.isclose(picture, color_of("liver"), atol=0.02).all(axis=-1)
        close = close[: int(0.75 * len(close))]  # above the legend
        panels.append([int(part.sum()) for part in np.array_split(close, 3, axis=1)])
    (nothing, outlined, empty), (plain, missing, whole) = panels
    assert (nothing, empty, plain, missing) == (0, 0, 0, 0)
    assert outlined > 100
    assert whole > outlined  # also where it touches the border


def test_right_of_the_patient_is_on_the_left() -> None:
    image = np.repeat(np.linspace(0, 1, 20)[:, None], 20, axis=1)  # brighter towards the patient's right
    picture = imread(io.BytesIO(draw(Overlay("one", image, square(0, 0), square(0, 0), ("liver",)))))[..., :3]
    row = picture[int(0.45 * len(picture)), : picture.shape[1] // 3].mean(axis=-1)
    grey = row[row < 0.99]
    assert len(grey) > 200
    assert (np.diff(grey) <= 0.01).all()
    assert grey[0] - grey[-1] > 0.9


def test_kept_overlays_read_back(tmp_path: Path) -> None:
    own = Overlay("One <two>", np.eye(20), square(2, 5), square(3, 6), ("liver",))
    save_overlays([own, own], tmp_path / "overlays.npz")
    found = load_overlays(tmp_path / "overlays.npz")
    assert [(each.title, each.names) for each in found] == [("One <two>", ("liver",))] * 2
    for key in ("image", "reference", "prediction"):
        assert np.array_equal(getattr(found[1], key), getattr(own, key))


def test_damaged_overlays_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "overlays.npz"
    for content in (b"", b"nothing", b"PK\x03\x04" + bytes(50)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"overlays\.npz holds no overlays .*; remove it") as caught:
            load_overlays(path)
        assert "\n" not in str(caught.value)


def test_masks_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'one' has masks of shapes .*; both must have \(1, 8, 8\)"):
        draw(Overlay("one", np.eye(8), square(0, 1), square(0, 1), ("liver",)))
