"""Tests of `lorkd deploy`: the files agree with the commands that they run."""

import configparser
import json
import re
import shlex
from collections.abc import Callable

import pytest

from lorkd_monailabel.cli import parser


def served(command: list[str]) -> object:
    """Parse the arguments of `lorkd serve` as it would."""
    assert command[:2] == ["lorkd", "serve"]
    return parser().parse_args(command[1:])


def test_unit_of_systemd(lorkd: Callable) -> None:
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str
    unit.read_string(lorkd("deploy", "show", "systemd").out)
    service = unit["Service"]
    program, *rest = shlex.split(service["ExecStart"])
    arguments = served([program.rpartition("/")[2], *rest])
    assert arguments.studies == service["ReadWritePaths"]
    assert str(arguments.work) == service["WorkingDirectory"] == f"/var/lib/{service['StateDirectory']}"
    assert arguments.host == "127.0.0.1"
    hard = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes"}
    assert {key: service[key] for key in hard} == hard
    assert (service["User"], service["CapabilityBoundingSet"]) == ("lorkd", "")


def test_containerfile(lorkd: Callable) -> None:
    text = lorkd("deploy", "show", "container").out.replace("\\\n", " ")
    steps = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    last = {word: rest for word, rest in steps}
    command = json.loads(last["ENTRYPOINT"]) + json.loads(last["CMD"])
    arguments = served(command)
    assert (arguments.studies, str(arguments.work), arguments.host) == ("/studies", "/var/lib/lorkd", "0.0.0.0")
    assert arguments.tokens is not None
    assert int(last["USER"]) > 0
    words = [word for word, _ in steps]
    assert words.index("USER") > max(number for number, word in enumerate(words) if word == "RUN")
    assert "http://127.0.0.1:8000/lorkd/health" in last["HEALTHCHECK"]
    assert {rest.partition("=")[0] for word, rest in steps if word == "ARG"} == {"BASE", "TORCH", "TORCH_INDEX"}
    copied = " ".join(rest for word, rest in steps if word == "COPY")
    assert {"pyproject.toml", "README.md", "LICENSE", "lorkd_monailabel"} <= set(copied.split())


@pytest.mark.parametrize("kind", ["systemd", "container"])
def test_every_command_in_the_comments_is_one(lorkd: Callable, kind: str) -> None:
    text = lorkd("deploy", "show", kind).out.replace("\\\n#", " ")
    commands = re.findall(r"lorkd\s+(tokens add|deploy show)([^>\n]*)", text)
    assert len(commands) == 2
    for words, rest in commands:
        assert parser().parse_args([*words.split(), *shlex.split(rest)]).run


def test_other_kinds(lorkd: Callable) -> None:
    outcome = lorkd("deploy", "show", "windows")
    assert (outcome.status, outcome.out) == (2, "")
