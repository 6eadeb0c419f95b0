"""Tests of the charts of a history."""

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from lorkd_monailabel.departments import DEPARTMENT_IDS
from train.reporting.charts import COLORS, color_of_department, curves, loss_chart, pace_chart, smooth, title_of
from train.reporting.history import Record


def records(count: int, **losses: float) -> list[Record]:
    return [Record(step, 1.0, losses, 1e-3, 2.0, 0.1, float(step)) for step in range(1, count + 1)]


def test_every_department_has_a_colour_of_its_own() -> None:
    assert tuple(COLORS) == DEPARTMENT_IDS
    assert len(set(COLORS.values())) == len(DEPARTMENT_IDS)
    assert color_of_department("no department") not in COLORS.values()
    assert (title_of("head_and_neck"), title_of("elbow")) == ("Head and neck", "Elbow")


def test_smoothing_by_hand() -> None:
    values = np.zeros(40)  # a window of 2: one to each side
    values[[0, 10, 39]] = 3.0
    expected = np.zeros(40)
    expected[[0, 39]] = 3.0  # the ends stand alone
    expected[[1, 9, 10, 11, 38]] = 1.0
    assert smooth(values).tolist() == pytest.approx(expected.tolist())
    assert smooth(np.full(7, 2.5)).tolist() == [2.5] * 7
    assert len(smooth(np.array([]))) == 0


def test_a_line_of_losses_has_no_lag() -> None:
    line = np.arange(200.0)
    assert smooth(line).tolist() == pytest.approx(line.tolist())


def test_curves_leave_out_what_is_not_finite_and_keep_the_vocabularys_order() -> None:
    told = [
        Record(1, 1.0, {"thorax": 3.0, "elbow": 1.0}, 1e-3, 1.0, 0.0, 0.0),
        Record(2, 1.0, {"brain": math.nan, "thorax": 2.0}, 1e-3, 1.0, 0.0, 0.0),
        Record(3, 1.0, {"brain": 5.0}, 1e-3, 1.0, 0.0, 0.0),
    ]
    found = {name: (steps.tolist(), losses.tolist()) for name, (steps, losses) in curves(told).items()}
    assert found == {"brain": ([3], [5.0]), "thorax": ([1, 2], [3.0, 2.0]), "elbow": ([1], [1.0])}
    assert list(found) == ["brain", "thorax", "elbow"]


def test_the_loss_chart_draws_each_department_in_its_colour_twice() -> None:
    picture = loss_chart(records(60, brain=1.0, pelvis=2.0)).decode()
    ElementTree.fromstring(picture)
    for name in ("brain", "pelvis"):
        strokes = picture.count(f"stroke: {COLORS[name]}")
        assert strokes == 2  # raw and smoothed
    assert COLORS["thorax"] not in picture


def test_a_chart_of_a_long_history_stays_small_and_the_same() -> None:
    long = records(20_000, brain=1.0)
    picture = loss_chart(long)
    assert picture == loss_chart(long)
    assert len(picture) < 3 * len(loss_chart(records(500, brain=1.0)))


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_of_a_step_or_two_has_charts(count: int) -> None:
    told = [*records(count, brain=1.0), Record(count + 1, math.nan, {"brain": math.nan}, 0.0, math.nan, 0.0, 9.0)]
    for draw in (loss_chart, pace_chart):
        assert ElementTree.fromstring(draw(told).decode()).tag.endswith("svg")


def test_a_run_without_a_finite_loss_has_a_chart() -> None:
    assert loss_chart(records(3, brain=math.inf)[:1]).startswith(b"<?xml")
    nothing = [Record(1, math.nan, {}, 1e-3, 1.0, 0.0, 0.0)]
    assert loss_chart(nothing).startswith(b"<?xml")
