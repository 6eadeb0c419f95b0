"""Tests of lorkd_monailabel.teachers.program, exported and channels."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorkd_monailabel.teachers.program import ProgramTeacher
from lorkd_monailabel.teachers.protocol import Teacher
from tests.teachers.conftest import Bright

Write = Callable[..., Path]
IMAGE = torch.linspace(-3, 3, 5 * 6 * 7).reshape(1, 5, 6, 7)  # normalised CT: -550 to 650 Hounsfield units
PROMPTS = ["spleen", "heart", "liver"]


def by_hand(image: Tensor) -> Tensor:
    """The liver and spleen of ``Bright`` behind a range of -50..150 Hounsfield units."""
    x = ((image[0] * 200 + 50).clamp(-50, 150) + 50) / 200
    liver, spleen = x.exp(), (2 * x).exp()
    return torch.stack((spleen, liver)) / (1 + liver + spleen)


def check(teacher: Teacher) -> None:
    with torch.no_grad():
        found = teacher(IMAGE, PROMPTS, "ct")
    torch.testing.assert_close(found[[0, 2]], by_hand(IMAGE))
    assert found[1].isnan().all()
    assert teacher(IMAGE, PROMPTS, "mri").isnan().all()
    assert teacher(IMAGE, ["heart"], "ct").isnan().all()


@pytest.fixture
def exported(tmp_path: Path, beside: Write) -> Path:
    """An exported program of any multiple of four voxels."""
    path = tmp_path / "bright.pt2"
    sizes = {axis: 4 * torch.export.Dim(f"n{axis}", min=1, max=64) for axis in (2, 3, 4)}
    program = torch.export.export(Bright().eval(), (torch.zeros(1, 1, 8, 12, 16),), dynamic_shapes=(sizes,))
    torch.export.save(program, path)
    beside(path)
    return path


def test_a_torchscript_teaches(tmp_path: Path, script: Write, beside: Write) -> None:
    path = script(tmp_path / "bright.ts")
    with pytest.raises(ValueError, match=r"bright\.ts\.json can't be read"):
        ProgramTeacher(path)
    beside(path)
    check(ProgramTeacher(path))


def test_an_exported_program_teaches(exported: Path) -> None:
    check(ProgramTeacher(exported))


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("hounsfield", lambda image: image * 200 + 50),
        ("normalised", lambda image: image),
        ("z_score", lambda image: (image - image.mean()) / image.std()),
    ],
)
def test_intensities_come_as_the_program_wants_them(
    tmp_path: Path, script: Write, beside: Write, told: str, expected: Callable[[Tensor], Tensor]
) -> None:
    path = script(tmp_path / "bright.ts")
    beside(path, intensities=told, activation="sigmoid", channels={"1": "spleen"})
    found = ProgramTeacher(path)(IMAGE, ["spleen"], "ct")
    torch.testing.assert_close(found, expected(IMAGE).sigmoid(), atol=1e-5, rtol=1e-5)


def test_channels_of_one_structure_are_put_together(tmp_path: Path, script: Write, beside: Write) -> None:
    path = script(tmp_path / "bright.ts")
    beside(path, channels=["background", "kidney_left", "left kidney"])
    found = ProgramTeacher(path)(IMAGE, ["left kidney"], "ct")
    torch.testing.assert_close(found[0], by_hand(IMAGE).sum(dim=0))
    beside(path, channels=["background", "kidney_left", "left kidney"], activation="sigmoid", intensities="normalised")
    found = ProgramTeacher(path)(IMAGE, ["left kidney"], "ct")
    torch.testing.assert_close(found[0], torch.maximum(IMAGE, 2 * IMAGE)[0].sigmoid())


def test_hounsfield_units_need_fixed_intensities_of_ct(tmp_path: Path, script: Write, beside: Write) -> None:
    path = script(tmp_path / "bright.ts")
    beside(path)
    with pytest.raises(ValueError, match="needs Hounsfield units, which 'sat' intensities of ct don't tell"):
        ProgramTeacher(path, intensities="sat")
    beside(path, modality="both")
    with pytest.raises(ValueError, match="of ct and mri don't tell"):
        ProgramTeacher(path)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"channels": None}, "does not say its channels"),
        ({"activation": None}, "does not say its activation"),
        ({"activation": "tanh"}, "has activation 'tanh'; use one of softmax, sigmoid, none"),
        ({"activation": ["softmax"]}, "has activation"),
        ({"modality": "pet"}, "has modality 'pet'; use one of ct, mri, both"),
        ({"intensities": {"from": [5, 5], "to": [0, 1]}}, "which is no range"),
        ({"intensities": {"from": [5], "to": [0, 1]}}, "has intensities"),
        ({"intensities": "unit"}, "use one of normalised, hounsfield, z_score"),
        ({"multiple_of": 0}, "multiple_of 0; it must be a whole number"),
        ({"spacing_mm": "fine"}, "spacing_mm 'fine'; it must be one number or three"),
        ({"channels": ["background", "soup"]}, "no channel of .* is a structure of the vocabulary"),
        ({"channels": {"-1": "liver"}}, "write a number and a name"),
        ({"channels": []}, "has no list of channels"),
        ({"chanels": []}, "unknown key 'chanels'"),
    ],
)
def test_a_json_that_says_it_wrong_is_one_sentence(
    tmp_path: Path, script: Write, beside: Write, changed: dict[str, Any], sentence: str
) -> None:
    path = script(tmp_path / "bright.ts")
    beside(path, **changed)
    with pytest.raises(ValueError, match=sentence) as caught:
        ProgramTeacher(path)
    assert "\n" not in str(caught.value)


def test_what_a_network_can_not_do_is_one_sentence(tmp_path: Path, script: Write, beside: Write) -> None:
    path = script(tmp_path / "bright.ts")
    beside(path, channels={"7": "liver"})
    with pytest.raises(ValueError, match=r"gives \(1, 3, 8, 8, 8\), expected \(1, 8 or more, 8, 8, 8\)"):
        ProgramTeacher(path)(IMAGE, ["liver"], "ct")
    beside(path, activation="none", intensities="normalised")
    with pytest.raises(ValueError, match=r"values outside of 0\.\.1"):
        ProgramTeacher(path)(IMAGE, ["liver"], "ct")
    beside(path, multiple_of=1)
    with pytest.raises(ValueError, match=r"can't take a patch of \(2, 2, 2\)"):
        ProgramTeacher(path)(IMAGE[:, :2, :2, :2], ["liver"], "ct")


def rewritten(path: Path, changed: dict[str, Any]) -> Path:
    """A copy of an exported program with files changed (by a function of their bytes) or added."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for name, change in changed.items():
        key = next((each for each in files if each.endswith(name)), f"bright/{name}")
        files[key] = change(files.get(key, b""))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


class Evil:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (self.command,)


def test_a_hostile_exported_program_is_refused_and_nothing_runs(exported: Path, tmp_path: Path) -> None:
    command = f"touch {tmp_path / 'ran'}"
    whole = exported.read_bytes()
    evil = pickle.dumps(Evil(command))

    def model(change: Callable[[dict[str, Any]], None]) -> dict[str, Callable[[bytes], bytes]]:
        def changed(content: bytes) -> bytes:
            record = json.loads(content)
            change(record)
            return json.dumps(record).encode()

        return {"models/model.json": changed}

    def call(record: dict[str, Any]) -> None:
        record["graph_module"]["graph"]["nodes"][0]["target"] = "torch.serialization.os.system"

    def size(record: dict[str, Any]) -> None:
        place = record["graph_module"]["graph"]["tensor_values"]["image"]["sizes"][2]["as_expr"]
        place["expr_str"] = f"__import__('os').system('{command}')"

    def constant(content: bytes) -> bytes:
        return json.dumps({"config": {"c": {"path_name": "custom_obj_0", "use_pickle": True}}}).encode()

    for changed, sentence in (
        (model(call), "a call of 'torch.serialization.os.system'"),
        (model(size), 'the expression "__import__'),
        ({"data/sample_inputs/model.pt": lambda content: evil}, "a pickle of inputs that asks to run code"),
        ({"model_constants_config.json": constant}, "the pickle of 'c'"),
        ({"data/constants/custom_obj_0": lambda content: evil}, "the file 'bright/data/constants/custom_obj_0'"),
        ({"data/aotinductor/m/m.so": lambda content: b"x"}, "the file 'bright/data/aotinductor/m/m.so'"),
    ):
        exported.write_bytes(whole)
        with pytest.raises(ValueError, match="which no plain program needs; nothing of it was run") as caught:
            ProgramTeacher(rewritten(exported, changed))
        assert sentence in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_damaged_programs_are_refused(tmp_path: Path, exported: Path, script: Write, beside: Write) -> None:
    whole = exported.read_bytes()
    for content in (b"", whole[: len(whole) // 2], pickle.dumps(Evil(f"touch {tmp_path / 'ran'}"))):
        exported.write_bytes(content)
        with pytest.raises(ValueError, match=r"bright\.pt2 is no archive that can be read"):
            ProgramTeacher(exported)
    path = script(tmp_path / "bright.ts")
    beside(path)
    check(ProgramTeacher(path))
    state = tmp_path / "state.ts"
    torch.save({"weight": torch.zeros(1)}, state)
    beside(state)
    with pytest.raises(ValueError, match=r"state\.ts is no TorchScript"):
        ProgramTeacher(state)
    folder = tmp_path / "folder.ts"
    folder.mkdir()
    beside(folder)
    with pytest.raises(ValueError, match=r"folder\.ts is no archive"):
        ProgramTeacher(folder)
    assert not (tmp_path / "ran").exists()
