"""Tests of lorkd_monailabel.learning.samples: how often what is drawn, and what a draw costs."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lorkd_monailabel.learning.prepared import PreparedCase
from lorkd_monailabel.learning.samples import case_weights
from tests.learning.streams import ABDOMEN, blocks, stream

Make = Callable[..., PreparedCase]


@pytest.fixture
def prepared(make_prepared: Make) -> PreparedCase:
    return make_prepared(blocks(), ABDOMEN)


def within(count: int, draws: int, share: float) -> bool:
    """Whether a binomial count is at most four deviations off."""
    return abs(count - draws * share) < 4 * math.sqrt(draws * share * (1 - share))


def test_sources_come_by_their_weights(make_prepared: Make) -> None:
    one = {"liver": ("abdomen", (1,))}
    cases = [make_prepared(blocks(), one, source="large") for _ in range(4)]
    cases += [make_prepared(blocks(), one, source=source) for source in ("small", "other")]
    # roots of 4, 1 and 1, times 3, 2 and 0
    assert case_weights(cases, {"large": 3.0, "default": 2.0, "other": 0.0}) == pytest.approx([3 / 16] * 4 + [1 / 4, 0])
    marked = [replace(each, image=np.full((20, 20, 20), number)) for number, each in enumerate(cases)]
    samples = stream({"abdomen": marked}, source_weights={"large": 3.0, "small": 2.0, "other": 0.0})
    drawn = Counter(int(samples[index].image[0, 0, 0, 0]) for index in range(600))
    assert sum(drawn.values()) == 600
    assert all(within(drawn[number], 600, 3 / 16) for number in range(4))
    assert within(drawn[4], 600, 1 / 4)
    assert drawn[5] == 0


@pytest.mark.parametrize("weights", [{"synthetic": -1.0}, {"synthetic": 0.0}, {"default": 0.0}])
def test_refuses_weights_of_sources_that_draw_nothing(prepared: PreparedCase, weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"weights \{'synthetic': -?\d\.0\} of sources must be at least 0, .*; set"):
        stream({"abdomen": [prepared]}, source_weights=weights)


@pytest.mark.parametrize("foreground", [0.0, 0.25, 1.0])
def test_patches_around_structures_come_by_their_share(make_prepared: Make, foreground: float) -> None:
    labels = np.zeros((60, 60, 60), dtype=np.int16)
    labels[:2, :2, :2] = 1  # a patch anywhere meets it once in a few thousand times
    samples = stream({"abdomen": [make_prepared(labels, {"liver": ("abdomen", (1,))})]}, foreground=foreground)
    found = sum(bool(samples[index].masks.any()) for index in range(400))
    assert found in {0.0: (0, 1, 2), 1.0: (400,)}.get(foreground, range(400))
    assert within(found, 400, foreground) or foreground in (0.0, 1.0)


@pytest.mark.parametrize(
    ("negatives", "wanted"),
    # of two present structures and six absent ones; n of all are absent where n = 2 share / (1 - share) on average
    [(0.0, 0.0), (0.2, 0.5), (0.25, 2 / 3), (0.5, 2.0), (0.7, 14 / 3), (1.0, 6.0)],
)
def test_absent_structures_come_by_their_share(make_prepared: Make, negatives: float, wanted: float) -> None:
    structures = {f"present {value}": ("abdomen", (value,)) for value in (1, 2)}
    structures |= {f"absent {value}": ("abdomen", (100 + value,)) for value in range(6)}
    labels = np.ones((8, 8, 8), dtype=np.int16)
    labels[4:] = 2
    samples = stream({"abdomen": [make_prepared(labels, structures)]}, negatives=negatives, max_queries=16)
    drawn = [[name[0] for name in samples[index].names] for index in range(300)]
    assert all(kinds.count("p") == 2 for kinds in drawn)
    more = sum(kinds.count("a") - math.floor(wanted + 1e-9) for kinds in drawn)
    part = wanted - math.floor(wanted + 1e-9)
    assert within(more, 300, part) if part > 1e-9 else more == 0
    nothing = make_prepared(np.zeros((8, 8, 8), dtype=np.int16), structures)
    (many,) = {
        len(stream({"abdomen": [nothing]}, negatives=negatives, max_queries=16)[index].names) for index in (0, 1)
    }
    assert many == (8 if negatives == 1 else 1)  # there is always something to ask


@pytest.mark.parametrize("changed", [{"foreground": -0.1}, {"foreground": 1.5}, {"negatives": 2.0}])
def test_refuses_shares_that_are_none(prepared: PreparedCase, changed: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"foreground \S+ and negatives \S+ are shares, 0\.\.1; set them"):
        stream({"abdomen": [prepared]}, **changed)


def test_the_stream_of_one_department_is_made_alike(make_prepared: Make) -> None:
    cases = {
        "abdomen": [make_prepared(blocks(), ABDOMEN)],
        "thorax": [make_prepared(blocks(), {"heart": ("thorax", (1,))}, department="thorax")],
    }
    told: dict[str, Any] = {"augment": True, "negatives": 0.0, "foreground": 0.5, "variations": ["blur"]}
    samples = stream(cases, weights={"abdomen": 1.0, "thorax": 0.0}, **told)
    before = samples[3]
    alone = samples.only("thorax", seed=9)
    direct = stream({"thorax": cases["thorax"]}, seed=9, **told)
    for one, other in [*((alone[index], direct[index]) for index in range(4)), (samples[3], before)]:
        assert (one.department, one.names) == (other.department, other.names)
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.masks, other.masks)


class Counted(list[PreparedCase]):
    """Cases that count how often one is looked at."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return super().__getitem__(index)

    def __iter__(self) -> Any:
        self.looks += len(self)
        return super().__iter__()


def test_a_sample_looks_at_one_case_however_many_there_are(prepared: PreparedCase) -> None:
    for count in (3, 3000):
        cases = Counted([prepared] * count)
        samples = stream({"abdomen": cases})
        made = cases.looks
        assert made <= 3 * count
        for index in (0, 5, 10**12):
            assert len(samples[index].names) > 0
        assert cases.looks == made + 3
