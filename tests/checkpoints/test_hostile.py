"""Files that are none, damaged or hostile: each is refused in one sentence that names it, and nothing in it is run."""

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from lorkd_monailabel.checkpoints.lorkd import read_lorkd
from lorkd_monailabel.checkpoints.sat import read_sat

NORM = "module.transformer_decoder.norm.weight"
ALIAS = "module.backbone.encoder.stages.1.0.convs.0.all_modules.1.bias"
FIRST = "module.backbone.encoder.stages.0.0.convs.0.conv.weight"


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def refusal(path: Path) -> str:
    sentences = []
    for read in (read_sat, read_lorkd):
        with pytest.raises(ValueError, match=r"[a-z]") as caught:
            read(path)
        assert caught.type is ValueError
        sentence = str(caught.value)
        assert str(path) in sentence
        assert "\n" not in sentence
        assert len(sentence) < 500
        sentences.append(sentence)
    return sentences[0]


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_not_run(state, file, tmp_path, zipped):
    marker = tmp_path / "ran"
    for content in (Bomb(marker), {"model_state_dict": Bomb(marker)}, {"model_state_dict": {NORM: Bomb(marker)}}):
        path = tmp_path / "file.pth"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        message = refusal(path)
        assert ("asks to run" in message) == zipped
    path = file({**state("tiny"), NORM: Bomb(marker)})
    refusal(path)
    assert not marker.exists()
    path.write_bytes(pickle.dumps({"model_state_dict": Bomb(marker)}))
    refusal(path)
    assert not marker.exists()


def test_missing_empty_truncated_or_a_folder(state, file, tmp_path):
    assert "can't be read" in refusal(tmp_path / "none.pth")
    (tmp_path / "folder.pth").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.pth")
    path = file(state("tiny"))
    data = path.read_bytes()
    for length in (0, 1, 4, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        assert "not all of it is there" in refusal(path)
    torch.save(state("tiny"), path, _use_new_zipfile_serialization=False)
    assert "is no checkpoint of torch 1.6 or newer" in refusal(path)


def test_zip_that_grows_or_is_another(tmp_path):
    path = tmp_path / "file.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    assert path.stat().st_size < 100_000
    assert "is packed, which torch never does" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "can't be read" in refusal(path)


def test_content_that_is_no_state(file, tmp_path):
    path = tmp_path / "file.pth"
    for content, message in (
        ([1, 2], "holds a list, a checkpoint holds a dictionary"),
        ({}, "holds no state of a network"),
        ({"model_state_dict": [1]}, "holds no state of a network"),
        ({"model_state_dict": {1: torch.zeros(1)}}, "has a int in place of a tensor's name"),
        ({"model_state_dict": {"a": 5}}, "'a' in .* is of type int, not a tensor"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            read_sat(path)
        refusal(path)


def endless(*shape: int) -> torch.Tensor:
    """One number that claims to be many."""
    return torch.zeros(1).expand(*shape)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({FIRST: None}, r"it lacks backbone\.encoder\.stages\.0\.0\.convs\.0\.conv\.weight"),
        ({NORM: None}, r"it lacks transformer_decoder\.norm\.weight"),
        ({NORM: torch.zeros(25)}, r"in_proj_weight has shape \(72, 24\), not \(75, 25\)|make no network"),
        ({FIRST: torch.zeros(2, 3, 3, 3)}, r"has shape \(2, 3, 3, 3\), not 5 lengths above 0"),
        ({FIRST: torch.zeros(2, 3, 0, 3, 3)}, r"has shape \(2, 3, 0, 3, 3\), not 5 lengths above 0"),
        (
            {FIRST: torch.zeros(2, 3, 3, 3, 5)},
            r"conv\.weight has shape \(2, 3, 3, 3, 5\), not \(2, 3, 3, 3, 3\)",
        ),
        ({"module.mask_embed_proj.2.bias": torch.zeros(3)}, r"mask_embed_proj\.2\.bias has shape \(3,\), not \(2,\)"),
        ({"module.seg_layers.0.weight": torch.zeros(3)}, r"has 'seg_layers\.0\.weight' \(3,\), which does not belong"),
        ({"transformer_decoder.norm.weight": torch.zeros(24)}, "twice, with and without a prefix"),
        ({NORM: torch.zeros(24, dtype=torch.int64)}, "norm.weight is not made of plain floating-point numbers"),
        ({NORM: torch.zeros(24).to_sparse()}, "norm.weight is not made of plain floating-point numbers"),
        ({NORM: torch.zeros(24, device="meta")}, "norm.weight is not made of plain floating-point numbers"),
        ({NORM: endless(24)}, "norm.weight is not made of plain floating-point numbers"),
        ({NORM: endless(2**40)}, r"make no network|has shape"),
        ({FIRST: endless(2**31, 2**20, 3, 3, 3)}, r"make no network|has shape"),
        (
            {ALIAS: torch.ones(3)},
            "not equal to what it stands",
        ),
        ({ALIAS: endless(3)}, "made of plain|not equal"),
        (
            {ALIAS.replace("convs.0", "convs.7"): torch.ones(3)},
            r"has shape \(3,\), not None",
        ),
        (
            {"module.query_proj.0.weight": torch.zeros(1)},
            r"query_proj\.0\.weight has shape \(1,\), not 2 lengths above 0",
        ),
    ],
)
def test_first_name_that_differs(state, file, changed, message):
    merged = {name: tensor for name, tensor in {**state("tiny"), **changed}.items() if tensor is not None}
    path = file(merged)
    with pytest.raises(ValueError, match=message):
        read_sat(path)
    refusal(path)


def test_more_numbers_than_the_file_holds(state, file):
    own = state("tiny")
    big = torch.zeros(24 * 2048)
    # Every layer's numbers are views of the same few: each is plain, all of them together are more than the file has.
    shared = {name: big[: each.numel()].view(each.shape) for name, each in own.items()}
    for name, each in [*shared.items()]:
        first, found, rest = name.partition("layers.1.")
        shared |= {f"{first}layers.{layer}.{rest}": each for layer in range(2, 60) if found}
    path = file(shared)
    assert "claims more numbers than the file holds" in refusal(path)


def test_a_pickle_that_is_no_zip_is_not_unpickled(tmp_path, monkeypatch):
    path = tmp_path / "file.pth"
    buffer = io.BytesIO()
    pickle.dump({"a": 1}, buffer)
    path.write_bytes(buffer.getvalue())
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was asked"))
    assert "is no checkpoint of torch 1.6 or newer" in refusal(path)
