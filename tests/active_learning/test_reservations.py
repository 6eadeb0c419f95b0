"""Tests of lorkd_monailabel.active_learning.reservations: annotators, one clock, and a file."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lorkd_monailabel.active_learning.reservations import Reservations, reservation_minutes

IMAGES = ["a", "b", "c"]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(path: Path, clock: Clock) -> Reservations:
    return Reservations(path / "r.json", reference=lambda image: f"<{image}>", seconds=60, clock=clock)


@pytest.fixture
def reservations(tmp_path: Path, clock: Clock) -> Reservations:
    return opened(tmp_path, clock)


def take(reservations: Reservations, client: str, asked: str = "x", *, skip: bool = False) -> str | None:
    found = reservations.next(client, asked, IMAGES, lambda free: min(free, default=None), skip=skip)
    return found and found[0]


def test_no_two_annotators_get_the_same(reservations: Reservations) -> None:
    assert [take(reservations, client) for client in "UVWX"] == ["a", "b", "c", None]


def test_many_at_once_never_get_the_same(tmp_path: Path, clock: Clock) -> None:
    images = [f"image {number}" for number in range(24)]

    def one(number: int) -> str:
        own = opened(tmp_path, clock)  # as of several processes
        found = own.next(f"client {number}", "x", images, lambda free: free[0])
        assert found
        return found[0]

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(one, range(24))) == sorted(images)


def test_asking_again_gives_the_same_and_renews_it(reservations: Reservations, clock: Clock) -> None:
    take(reservations, "U")
    clock.now += 50
    assert take(reservations, "U") == "a"
    assert reservations.of(IMAGES)["a"].expires == 1000 + 50 + 60


def test_it_expires(reservations: Reservations, clock: Clock) -> None:
    take(reservations, "U")
    clock.now += 59
    assert take(reservations, "V") == "b"
    clock.now += 2
    assert reservations.of(IMAGES).keys() == {"b"}
    assert take(reservations, "W") == "a"


def test_another_wish_gives_it_up(reservations: Reservations) -> None:
    take(reservations, "U", "x")
    take(reservations, "V", "x")
    assert take(reservations, "U", "y") == "a"
    assert len(reservations.of(IMAGES)) == 2


def test_skipped_is_given_to_others(reservations: Reservations) -> None:
    take(reservations, "U")
    assert take(reservations, "U", skip=True) == "b"
    assert take(reservations, "V") == "a"


def test_what_is_labelled_is_not_given_again(reservations: Reservations) -> None:
    take(reservations, "U")
    found = reservations.next("U", "x", ["b", "c"], lambda free: free[0])
    assert found is not None
    assert found[0] == "b"
    assert reservations.of(IMAGES).keys() == {"b"}


def test_released(reservations: Reservations) -> None:
    assert reservations.release("a") is None
    take(reservations, "U")
    released = reservations.release("a")
    assert released is not None
    assert released.client == "U"
    assert take(reservations, "V") == "a"


def test_who_gives_no_name_gets_what_is_free_and_no_reservation(reservations: Reservations) -> None:
    take(reservations, "U")
    found = reservations.next("", "x", IMAGES, lambda free: free[0])
    assert found == ("b", None)
    assert reservations.of(IMAGES).keys() == {"a"}


def test_a_restart_keeps_them_and_the_file_names_no_image(
    reservations: Reservations, tmp_path: Path, clock: Clock
) -> None:
    take(reservations, "U")
    assert take(opened(tmp_path, clock), "V") == "b"
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")).keys() == {"<a>", "<b>"}


@pytest.mark.parametrize("text", ["{", "[]", '{"<a>": 3}', '{"<a>": {"client": "U"}}'])
def test_a_damaged_file_is_begun_anew(reservations: Reservations, tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text, encoding="utf-8")
    assert take(reservations, "V") == "a"
    assert reservations.of(IMAGES).keys() == {"a"}


def test_minutes_of_the_operator() -> None:
    assert (reservation_minutes(None), reservation_minutes("0.5")) == (30, 0.5)
    for value in ("0", "-1", "nan", "inf", "soon", "10081"):
        with pytest.raises(ValueError, match=r"reservation_minutes .* must be over 0"):
            reservation_minutes(value)
