"""The local datastore under many threads, sudden ends and bad names."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from monailabel.interfaces.exception import ImageNotFoundException

from lorkd_monailabel.sources.folders import FolderStudies

SAVE = """
import os, signal, sys, time
from lorkd_monailabel.sources.folders import FolderStudies

root, label = sys.argv[1:]
for number in range(12):
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        studies = FolderStudies(root, extensions=["*.nii.gz"])
        os.write(told, b"x")
        while True:
            for name in ("a", "b"):
                studies.save_label(name, label, "final", {"label_info": [{"name": "liver", "idx": 1}] * 2000})
    os.read(ready, 1)
    time.sleep(0.011 * number)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@pytest.fixture
def project(request):
    """The top of the checkout."""
    return request.config.rootpath


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.nii.gz").write_bytes(b"image")
    (tmp_path / "label.nii.gz").write_bytes(b"label" * 200_000)
    return folder


@pytest.fixture
def studies(root):
    return FolderStudies(str(root), extensions=["*.nii.gz"])


def test_killed_while_it_saves_leaves_whole_files(root, tmp_path, project):
    label = tmp_path / "label.nii.gz"
    subprocess.run([sys.executable, "-c", SAVE, str(root), str(label)], cwd=project, check=True)
    json.loads((root / "datastore_v2.json").read_text())
    saved = list((root / "labels" / "final").glob("*.nii.gz"))
    assert [file.stat().st_size for file in saved] == [label.stat().st_size] * len(saved)
    assert not list(root.glob("*.damaged"))
    assert saved
    assert sorted(FolderStudies(str(root), extensions=["*.nii.gz"]).list_images()) == ["a", "b"]


def test_damaged_catalogue_is_put_aside_and_made_anew(root, studies, tmp_path):
    studies.save_label("a", str(tmp_path / "label.nii.gz"), "final", {})
    (root / "datastore_v2.json").write_text('{"name": ')
    again = FolderStudies(str(root), extensions=["*.nii.gz"])
    assert (sorted(again.list_images()), again.get_labeled_images()) == (["a", "b"], ["a"])
    assert (root / "datastore_v2.json.damaged").is_file()


def test_threads_lose_nothing(root, studies, tmp_path):
    def work(number: int) -> None:
        studies.update_image_info("a", {f"key {number}": number})
        studies.save_label("b", str(tmp_path / "label.nii.gz"), f"tag{number}", {})
        studies.refresh()
        assert studies.get_image_uri("a")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(24)))
    assert set(studies.get_labels_by_image_id("b")) == {f"tag{number}" for number in range(24)}
    assert {f"key {number}" for number in range(24)} <= set(studies.get_image_info("a"))


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".hidden", "a\\b", "nul\0"])
def test_names_are_no_paths(studies, tmp_path, name):
    label = str(tmp_path / "label.nii.gz")
    with pytest.raises(ValueError, match="must be a name, not a path"):
        studies.save_label("a", label, name, {})
    with pytest.raises(ValueError, match="must be a name, not a path"):
        studies.add_image(name, label, {})


def test_images_are_added_whole_and_of_known_kinds(root, studies, tmp_path):
    assert studies.add_image("", str(tmp_path / "label.nii.gz"), {"user": "me"}) == "label"
    assert (root / "label.nii.gz").stat().st_size == 1_000_000
    assert studies.get_image_info("label")["user"] == "me"
    (tmp_path / "main.py").write_text("print()")
    with pytest.raises(ValueError, match=r"an image \.py is not taken"):
        studies.add_image("main", str(tmp_path / "main.py"), {})
    with pytest.raises(ImageNotFoundException):
        studies.save_label("nobody", str(tmp_path / "label.nii.gz"), "final", {})


def test_an_image_that_is_sent_again_keeps_its_labels(root, studies, tmp_path):
    named = {"label_info": [{"name": "liver", "idx": 1}]}
    label = str(tmp_path / "label.nii.gz")
    studies.save_label("a", label, "final", named)
    studies.add_image("a", label, {})
    again = FolderStudies(str(root), extensions=["*.nii.gz"])
    for each in (studies, again):
        assert each.get_label_info("a", "final")["label_info"] == named["label_info"]
    assert (root / "a.nii.gz").stat().st_size == 1_000_000
