import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from lorkd_monailabel import demo_data
from lorkd_monailabel.demo_data import FILES, MEMBERS, demo_cases, demo_labels, fetch_demo
from lorkd_monailabel.departments import department, structure


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_sdist(path: Path, contents: dict[str, bytes]) -> Path:
    with tarfile.open(path, mode="w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def contents() -> dict[str, bytes]:
    """What the stand-in for the source package holds under the four names, too short to be images."""
    return {original: f"bytes of {original}".encode() for original, _ in FILES.values()}


@pytest.fixture
def sdist(tmp_path, monkeypatch, contents) -> Path:
    """A source package like TotalSegmentator's, with traps beside the four files, whose hashes are the pinned ones."""
    members = {f"{MEMBERS}/{name}": content for name, content in contents.items()}
    members |= {"../../outside.txt": b"x", f"{MEMBERS}/ct.nii.gz": b"x", "example_ct.nii.gz": b"x"}
    path = write_sdist(tmp_path / "totalsegmentator-2.18.0.tar.gz", members)
    pinned = {name: (original, digest(contents[original])) for name, (original, _) in FILES.items()}
    monkeypatch.setattr(demo_data, "FILES", pinned)
    monkeypatch.setattr(demo_data, "SDIST_SHA256", digest(path.read_bytes()))
    return path


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Path:
    """pip without a network: it looks into this folder only."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return shelf


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert 40 < len(text) < 500
    return text


def test_writes_the_four_files_and_nothing_else(tmp_path, sdist, contents):
    folder = tmp_path / "new" / "demo"
    data = fetch_demo(folder, sdist=sdist)
    assert data.ct == folder / "ct.nii.gz"
    assert data.mr_labels == folder / "mr_labels.nii.gz"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "ct.nii.gz": contents["example_ct.nii.gz"],
        "ct_labels.nii.gz": contents["example_seg_fast_force_split.nii.gz"],
        "mr.nii.gz": contents["example_mr_sm.nii.gz"],
        "mr_labels.nii.gz": contents["example_seg_mr.nii.gz"],
    }
    assert not list(tmp_path.rglob("outside.txt"))


def test_keeps_what_is_there_and_replaces_what_is_damaged(tmp_path, sdist):
    folder = tmp_path / "demo"
    data = fetch_demo(folder, sdist=sdist)
    assert fetch_demo(folder, sdist=tmp_path / "missing.tar.gz") == data
    good = data.ct.read_bytes()
    data.ct.write_bytes(good[:5])
    fetch_demo(folder, sdist=sdist)
    assert data.ct.read_bytes() == good


def test_relative_folder_gives_absolute_paths(tmp_path, sdist, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fetch_demo("demo", sdist=sdist).mr == tmp_path / "demo" / "mr.nii.gz"


def test_truncated_sdist_is_refused(tmp_path, sdist):
    sdist.write_bytes(sdist.read_bytes()[:-20])
    with pytest.raises(ValueError, match="SHA-256") as caught:
        fetch_demo(tmp_path / "demo", sdist=sdist)
    assert demo_data.SDIST_SHA256 in one_sentence(caught.value)
    assert not (tmp_path / "demo").exists()


def test_another_file_is_refused(tmp_path):
    other = tmp_path / "notes.txt"
    other.write_bytes(b"not an archive")
    with pytest.raises(ValueError, match=r"notes\.txt has SHA-256 .* download it again") as caught:
        fetch_demo(tmp_path / "demo", sdist=other)
    one_sentence(caught.value)
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("path", ["missing.tar.gz", "."])
def test_missing_sdist_is_refused(tmp_path, path):
    with pytest.raises(FileNotFoundError, match="is not a file") as caught:
        fetch_demo(tmp_path / "demo", sdist=tmp_path / path)
    one_sentence(caught.value)
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("change", ["altered", "missing", "folder"])
def test_wrong_image_in_the_sdist_is_refused(tmp_path, sdist, contents, monkeypatch, change):
    """The last file is wrong; the right ones before it are not written either."""
    members = {f"{MEMBERS}/{name}": content for name, content in contents.items()}
    last = f"{MEMBERS}/example_seg_mr.nii.gz"
    content = members.pop(last)
    if change == "altered":
        members[last] = content + b"!"
    elif change == "folder":
        members[f"{last}/x"] = content
    write_sdist(sdist, members)
    monkeypatch.setattr(demo_data, "SDIST_SHA256", digest(sdist.read_bytes()))
    with pytest.raises(ValueError, match=r"example_seg_mr\.nii\.gz in .* is not the expected file") as caught:
        fetch_demo(tmp_path / "demo", sdist=sdist)
    one_sentence(caught.value)
    assert not (tmp_path / "demo").exists()


def test_failed_download_is_one_sentence(tmp_path, offline):
    with pytest.raises(ValueError, match=r"pip cannot fetch totalsegmentator==2\.18\.0 \(.*\); check the") as caught:
        fetch_demo(tmp_path / "demo")
    assert "Could not find a version" in one_sentence(caught.value)
    assert not (tmp_path / "demo").exists()


def test_download_with_another_hash_is_refused_before_it_runs(tmp_path, offline):
    code = f"open({str(tmp_path / 'it-ran')!r}, 'w')".encode()
    members = {"totalsegmentator-2.18.0/setup.py": code, "totalsegmentator-2.18.0/PKG-INFO": b"Metadata-Version: 2.1\n"}
    write_sdist(offline / "totalsegmentator-2.18.0.tar.gz", members)
    with pytest.raises(ValueError, match="DO NOT MATCH THE HASHES") as caught:
        fetch_demo(tmp_path / "demo")
    one_sentence(caught.value)
    assert not (tmp_path / "it-ran").exists()
    assert not (tmp_path / "demo").exists()


def test_labels_are_distinct_and_sides_come_in_pairs():
    ct, mr = demo_labels("ct"), demo_labels("mr")
    assert (len(ct), len(mr)) == (61, 23)
    assert [ct[value] for value in (3, 5, 52, 77, 117)] == [
        "left kidney",
        "liver",
        "aorta",
        "left hip bone",
        "costal cartilages",
    ]
    assert [mr[value] for value in (3, 5, 23, 46)] == [
        "left kidney",
        "liver",
        "aorta",
        "left autochthonous back muscle",
    ]
    left = {name.removeprefix("left ") for name in ct.values() if name.startswith("left ")}
    right = {name.removeprefix("right ") for name in ct.values() if name.startswith("right ")}
    assert left ^ right == {"lung upper lobe"}  # the right one lies above the volume


def test_names_and_departments_are_the_vocabularys(tmp_path, sdist):
    fetch_demo(tmp_path, sdist=sdist)
    for case in demo_cases(tmp_path):
        for name, entry in case["structures"].items():
            assert structure(name).department == department(entry["department"]).id, name


def test_cases_are_absolute_and_whole(tmp_path, sdist, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = fetch_demo("demo", sdist=sdist)
    ct, mr = demo_cases("demo")
    assert (ct["image"], ct["label"], ct["modality"]) == (str(data.ct), str(data.ct_labels), "ct")
    assert (mr["image"], mr["label"], mr["modality"]) == (str(data.mr), str(data.mr_labels), "mri")
    assert ct["structures"]["left femur"] == {"values": [75], "department": "lower limb"}
    assert {name: entry["values"] for name, entry in mr["structures"].items()} == {
        name: [value] for value, name in demo_labels("mr").items()
    }


def test_cases_of_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ct\.nii\.gz is missing; fetch"):
        demo_cases(tmp_path)
