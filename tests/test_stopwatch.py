"""Tests of lorkd_monailabel.stopwatch."""

import time

import pytest

from lorkd_monailabel.stopwatch import Stopwatch


def test_laps_of_a_stage_are_added_and_failed_ones_count():
    watch = Stopwatch()
    for _ in range(2):
        with watch.stage("windows"):
            time.sleep(0.02)
    with pytest.raises(ValueError, match="out"), watch.stage("merge"):
        raise ValueError("out")
    assert list(watch.seconds) == ["windows", "merge"]
    assert 0.04 <= watch.seconds["windows"]
    assert 0 <= watch.seconds["merge"] < watch.seconds["windows"]
