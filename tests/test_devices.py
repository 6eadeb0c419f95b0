"""Tests of lorkd_monailabel.devices."""

import pytest
import torch

from lorkd_monailabel.devices import checked_device, has_fast_bf16


def test_a_device_is_chosen_where_none_is_named() -> None:
    assert checked_device(None) == checked_device("") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert checked_device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "'gpu' is unknown to torch; use --conf device cpu, or cuda, or cuda:1"),
        ("cuda:99", "'cuda:99' is not there"),
        ("meta", "'meta' is not one of cpu, cuda, mps; use --conf device cpu"),
    ],
)
def test_a_device_that_can_not_be_used_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_device(name, option="--conf device")


def test_an_apple_gpu_must_be_there() -> None:
    if torch.backends.mps.is_available():
        assert checked_device("mps") == "mps"
    else:
        with pytest.raises(ValueError, match="no Apple GPU"):
            checked_device("mps")


@pytest.mark.parametrize(("capabilities", "fast"), [({}, False), ({"avx2": True}, False), ({"amx_bf16": True}, True)])
def test_half_precision_is_for_processors_that_have_it(
    capabilities: dict[str, bool], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_fast_bf16(torch.device("cpu")) is fast
    assert has_fast_bf16(torch.device("cuda"))
