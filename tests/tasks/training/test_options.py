"""Tests of lorkd_monailabel.tasks.training.options."""

from typing import Any

import pytest

from lorkd_monailabel.tasks.training.options import TrainingOptions, options_of

KNOWN = {"steps": 200, "learning_rate": 1e-3, "tags": "final", "labels": "", "force": False, "network": ""}


def made(**request: Any) -> TrainingOptions:
    return options_of(request, known=KNOWN)


def test_what_is_left_out_is_the_default() -> None:
    assert made(model="finetune_abdomen", client_id="x", name="run", max_epochs=1) == TrainingOptions()


def test_what_clients_make_of_numbers_is_understood() -> None:
    options = made(steps="30", learning_rate=["0.01", "1"], force="True", tags=" final, second ,final")
    assert (options.steps, options.learning_rate, options.force) == (30, 0.01, True)
    assert options.tag_list == ("final", "second")
    assert made(steps=30.0, force=False).steps == 30


def test_values_of_labels() -> None:
    assert made(labels="liver=1, left kidney = 2,liver=3,").values == {"liver": (1, 3), "left kidney": (2,)}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"epochs": 1}, "option 'epochs' is unknown; a training takes steps, "),
        ({"rank": 4}, "option 'rank' is unknown"),
        ({"steps": 0}, r"steps 0 must be in 1\.\.1e\+06"),
        ({"steps": 1.5}, "steps '1.5' must be a whole number"),
        ({"steps": True}, "steps 'True' must be a whole number"),
        ({"steps": []}, "steps 'None' must be a whole number"),
        ({"steps": {"a": 1}}, "must be a whole number"),
        ({"steps": 10**400}, "must be a whole number"),
        ({"learning_rate": float("nan")}, "learning_rate 'nan' must be a number"),
        ({"learning_rate": 2}, r"learning_rate 2 must be in 1e-08\.\.1"),
        ({"force": "perhaps"}, "force 'perhaps' must be true or false"),
        ({"force": 1}, "force '1' must be true or false"),
        ({"tags": "../final"}, "must be names of tags"),
        ({"tags": ""}, "must be names of tags"),
        ({"tags": 3}, "tags '3' must be text"),
        ({"labels": "liver"}, "labels 'liver' must be like \"liver=1, spleen=2\""),
        ({"labels": "liver=0"}, r"values in 1\.\.32767"),
        ({"labels": "=1"}, "must be like"),
        ({"network": "huge"}, "network 'huge' is unknown; choose one of tiny"),
        ({"gpus": "0;rm"}, "gpus '0;rm' must be all, or numbers like 0,1"),
        ({"labels": "x" * 200_000}, "longer than 100 KiB"),
    ],
)
def test_what_can_not_be(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**request_)
