"""Tests of lorkd_monailabel.learning.samples."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch

from lorkd_monailabel.learning.prepared import PreparedCase
from lorkd_monailabel.learning.samples import Sample, case_weights
from tests.learning.streams import ABDOMEN, blocks, stream

Make = Callable[..., PreparedCase]


@pytest.fixture
def prepared(make_prepared: Make) -> PreparedCase:
    return make_prepared(blocks(), ABDOMEN)


def same(one: Sample, other: Sample) -> bool:
    return (
        (one.department, one.modality, one.names) == (other.department, other.modality, other.names)
        and torch.equal(one.image, other.image)
        and torch.equal(one.masks, other.masks)
    )


@pytest.mark.parametrize("augment", [False, True])
def test_a_sample_is_a_pure_function_of_seed_and_index(prepared: PreparedCase, augment: bool) -> None:
    samples, again = (stream({"abdomen": [prepared]}, augment=augment) for _ in range(2))
    forwards = [samples[index] for index in range(8)]
    torch.rand(5)
    np.random.random(5)
    backwards = [again[index] for index in reversed(range(8))][::-1]
    assert all(same(one, other) for one, other in zip(forwards, backwards, strict=True))
    assert len({sample.image.numpy().tobytes() for sample in forwards}) == 8
    other = stream({"abdomen": [prepared]}, augment=augment, seed=4)
    assert not any(same(samples[index], other[index]) for index in range(8))


def test_departments_come_by_their_weights(make_prepared: Make) -> None:
    cases = {
        "abdomen": [make_prepared(blocks(), ABDOMEN)],
        "thorax": [make_prepared(blocks(), {"heart": ("thorax", (1,))}, department="thorax")],
    }
    samples = stream(cases, weights={"abdomen": 3.0, "thorax": 1.0})
    drawn = [samples[index] for index in range(64)]
    assert Counter(sample.department for sample in drawn) == {"abdomen": 48, "thorax": 16}
    assert all(("heart" in sample.names) == (sample.department == "thorax") for sample in drawn)


def test_masks_are_the_labels_of_the_same_place(prepared: PreparedCase) -> None:
    samples = stream({"abdomen": [prepared]})
    seen = Counter[str]()
    for index in range(40):
        sample = samples[index]
        assert (sample.department, sample.modality) == ("abdomen", "ct")
        assert sample.image.shape == (1, 8, 8, 8)
        assert sample.masks.shape == (len(sample.names), 8, 8, 8)
        for name, mask in zip(sample.names, sample.masks, strict=True):
            # The image of this case is its labels.
            expected = np.isin(sample.image[0].numpy(), ABDOMEN[name][1])
            assert np.array_equal(mask.numpy(), expected.astype(np.float32))
            seen[name] += 1
    assert set(seen) == set(ABDOMEN)


def test_masks_follow_the_augmented_image(make_prepared: Make) -> None:
    labels = blocks((24, 24, 24))
    case = make_prepared(labels, {"liver": ("abdomen", (1, 2, 3, 4))}, image=np.where(labels > 0, 10.0, 0.0))
    samples = stream({"abdomen": [case]}, augment=True, patch=16)
    moved = 0
    for index in range(12):
        sample = samples[index]
        mask = sample.masks[0] > 0
        assert (((sample.image[0] > 5) == mask).float().mean()) > 0.93
        moved += bool((sample.image[0] - 10 * sample.masks[0]).abs().max() > 1)
    assert moved >= 3


def test_a_moved_patch_repeats_no_border_of_its_own(make_prepared: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.broadcast_to(np.linspace(0, 60, 61)[:, None, None], (61, 60, 60))
    labels = np.zeros((61, 60, 60), dtype=np.int16)
    labels[28:33, 28:33, 28:33] = 1
    case = make_prepared(labels, {"liver": ("abdomen", (1,))}, image=ramp)
    samples = stream({"abdomen": [case]}, augment=True, patch=12, rotation_rad=0.5, scaling=0.3)
    monkeypatch.setattr(samples.augmentation, "_intensities", ())
    where = torch.stack(torch.meshgrid(*[torch.arange(12.0)] * 3, indexing="ij")).reshape(3, -1)
    design, turned = torch.cat((where, torch.ones_like(where[:1]))).T, 0
    for index in range(24):
        seen = samples[index].image.reshape(-1, 1)
        fit = torch.linalg.lstsq(design, seen).solution
        assert (design @ fit - seen).abs().max() < 0.02  # a ramp turned and stretched is one everywhere
        turned += bool(fit[1:3].abs().max() > 0.2)
    assert turned > 3


def test_no_value_appears_between_two_others(make_prepared: Make) -> None:
    labels = np.where(blocks((24, 24, 24)) > 0, 4, 0).astype(np.int16)
    case = make_prepared(labels, {"liver": ("abdomen", (1, 2, 3)), "spleen": ("abdomen", (4,))})
    samples = stream({"abdomen": [case]}, augment=True, patch=16)
    for index in range(12):
        sample = samples[index]
        assert not sample.masks[sample.names.index("liver")].any()


def test_left_never_becomes_right(make_prepared: Make) -> None:
    ramps = np.stack(np.meshgrid(*[np.linspace(0, 10, 24)] * 3, indexing="ij"))
    where = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 16)] * 3, indexing="ij"))
    labels = np.ones((24, 24, 24), dtype=np.int16)
    for axis in range(3):
        case = make_prepared(labels, {"liver": ("abdomen", (1,))}, image=ramps[axis])
        samples = stream({"abdomen": [case]}, augment=True, patch=16)
        for index in range(30):
            image = samples[index].image[0]
            assert torch.corrcoef(torch.stack((image.flatten(), where[axis].flatten())))[0, 1] > 0.5


@pytest.mark.parametrize(
    ("shape", "padded"), [((5, 7, 9), (8, 8, 12)), ((16, 3, 20), (16, 4, 16)), ((16, 16, 16), (16, 16, 16))]
)
def test_small_volumes_are_padded_to_the_stride(
    make_prepared: Make, shape: tuple[int, int, int], padded: tuple[int, int, int]
) -> None:
    labels = np.ones(shape, dtype=np.int16)
    image = np.random.default_rng(0).uniform(1, 2, shape)
    sample = stream({"abdomen": [make_prepared(labels, ABDOMEN, image=image)]}, patch=16)[0]
    assert sample.image.shape == (1, *padded)
    inner = tuple(slice(min(length, 16)) for length in shape)
    outside = torch.ones(padded, dtype=torch.bool)
    outside[inner] = False
    assert (sample.image[0][outside] == sample.image[0][inner].min()).all()
    mask = sample.masks[sample.names.index("liver")]
    assert mask[inner].all()
    assert not mask[outside].any()


def test_patches_show_the_departments_structures_and_stay_inside(make_prepared: Make) -> None:
    labels = np.zeros((40, 40, 40), dtype=np.int16)
    labels[0:2, 0:2, 38:40] = 1
    position = np.arange(40**3).reshape(40, 40, 40) % 2000.0
    case = make_prepared(labels, {"liver": ("abdomen", (1,))}, image=position)
    samples = stream({"abdomen": [case]})
    for index in range(20):
        sample = samples[index]
        assert sample.masks[0].any()
        assert np.isin(sample.image.numpy(), position).all()


def test_what_was_not_annotated_is_never_asked_for(make_prepared: Make) -> None:
    structures = {"liver": ("abdomen", (1,)), "heart": ("thorax", (2,))}
    cases = {"abdomen": [make_prepared(blocks(), structures)]}
    own, every = stream(cases), stream(cases, all_structures=True)
    assert {name for index in range(30) for name in own[index].names} == {"liver"}
    assert {name for index in range(30) for name in every[index].names} == {"liver", "heart"}


def test_present_structures_come_first_and_absent_ones_are_at_most_as_many(make_prepared: Make) -> None:
    structures = {f"present {value}": ("abdomen", (value,)) for value in (1, 2)}
    structures |= {f"absent {value}": ("abdomen", (100 + value,)) for value in range(6)}
    labels = np.ones((8, 8, 8), dtype=np.int16)
    labels[4:] = 2
    for most, kinds in ((1, "p"), (2, "pp"), (3, "ppa"), (4, "ppaa"), (16, "ppaa")):
        samples = stream({"abdomen": [make_prepared(labels, structures)]}, max_queries=most)
        drawn = [samples[index].names for index in range(20)]
        assert {"".join(name[0] for name in names) for names in drawn} == {kinds}
        assert all(len(set(names)) == len(names) for names in drawn)
    assert len({name for names in drawn for name in names}) == 8
    nothing = make_prepared(np.zeros((8, 8, 8), dtype=np.int16), structures)
    assert len(stream({"abdomen": [nothing]})[0].names) == 1


def test_cases_weigh_by_their_structures_and_the_root_of_their_source(make_prepared: Make) -> None:
    one = {"liver": ("abdomen", (1,))}
    two = {**one, "spleen": ("abdomen", (2,))}
    cases = [make_prepared(blocks(), one, source="large") for _ in range(4)]
    cases.append(make_prepared(blocks(), two, source="small"))
    # 1 / sqrt(4) each for the four, 2 / sqrt(1) for the fifth: 4 in all.
    assert case_weights(cases, {}) == pytest.approx([0.125, 0.125, 0.125, 0.125, 0.5])


def test_a_label_of_several_values_is_one_mask(make_prepared: Make) -> None:
    labels = blocks()
    labels[0, 0, 0] = -3
    structures = {"liver": ("abdomen", (1, 2, 3, 3)), "spleen": ("abdomen", (-3, 9)), "stomach": ("abdomen", ())}
    samples = stream({"abdomen": [make_prepared(labels, structures, image=labels)]}, patch=20, negatives=1.0)
    sample = samples[0]
    masks = dict(zip(sample.names, sample.masks.numpy(), strict=True))
    assert sample.names.index("stomach") == 2  # absent ones come last
    assert np.array_equal(masks["liver"], np.isin(labels, (1, 2, 3)).astype(np.float32))
    assert masks["spleen"].sum() == masks["spleen"][0, 0, 0] == 1
    assert not masks["stomach"].any()


@pytest.mark.parametrize("changed", [{"patch": 0}, {"max_queries": 0}, {"patch": -8}])
def test_refuses_lengths_below_one(prepared: PreparedCase, changed: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"patch -?\d+ and max_queries \d+ must be at least 1; set them in the config"):
        stream({"abdomen": [prepared]}, **changed)


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_refuses_weights_that_draw_nothing(prepared: PreparedCase, weight: float) -> None:
    with pytest.raises(ValueError, match=r"weights .* must be at least 0, .*; set data\.weights"):
        stream({"abdomen": [prepared]}, weights={"abdomen": weight})
