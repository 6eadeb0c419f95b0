"""Tests of `lorkd segment`: what it writes, where, and what it says."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from lorkd_monailabel.commands import segment
from lorkd_monailabel.commands.segment import default_output
from lorkd_monailabel.departments import structure
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.prompts import Target, resolve
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.volumes import read_volume

pytestmark = pytest.mark.usefixtures("here")


def test_label_map_and_table(lorkd: Callable, here: Path, store: ExpertStore, ct: Path) -> None:
    outcome = lorkd("segment", ct, "--text", "heart, the liver; colon", "--store", store.folder)
    expected = Predictor(store).segment(read_volume(ct), resolve("heart, the liver; colon")[0])
    assert (outcome.status, outcome.err) == (0, "")
    result = nibabel.load(here / "ct_lorkd.nii.gz")
    np.testing.assert_array_equal(result.dataobj, expected.label_map.array)
    np.testing.assert_array_equal(result.affine, nibabel.load(ct).affine)
    lines = outcome.out.splitlines()
    assert lines[0].split() == list(segment.HEADER)
    heart, liver, colon = expected.answers
    assert lines[1].split() == f"heart heart thorax 1 1 {heart.voxels} {heart.ml:.1f} {heart.status}".split()
    assert lines[2].split() == f"the liver liver abdomen 2 2 {liver.voxels} {liver.ml:.1f} {liver.status}".split()
    assert lines[3].split() == "colon colon abdomen - - 0 0.0 no expert".split()
    assert colon.status == "no expert"
    assert lines[4].startswith("ct_lorkd.nii.gz: read as ct, on ")
    assert [path.name for path in here.iterdir()] == ["ct_lorkd.nii.gz"]


def test_what_is_not_understood_stands_on_the_standard_error(
    lorkd: Callable, here: Path, store: ExpertStore, ct: Path
) -> None:
    outcome = lorkd("segment", ct, "--text", "liver; splen; \x1b[2J", "--store", store.folder)
    assert outcome.status == 0
    first, second = outcome.err.splitlines()
    assert first.startswith("lorkd: 'splen' is not a known structure; did you mean 'spleen'")
    assert "\x1b" not in second
    assert (here / "ct_lorkd.nii.gz").exists()


@pytest.mark.parametrize("extension", segment.OUTPUTS)
def test_every_extension_that_is_offered(
    lorkd: Callable, here: Path, store: ExpertStore, ct: Path, extension: str
) -> None:
    outcome = lorkd("segment", ct, "--text", "liver", "--store", store.folder, "--output", here / f"labels{extension}")
    assert (outcome.status, outcome.err) == (0, "")
    assert read_volume(here / f"labels{extension}", "ct").grid.shape == (9, 8, 7)


def test_overlaps_are_kept_in_a_segmentation_file(lorkd: Callable, here: Path, store: ExpertStore, ct: Path) -> None:
    words = ("--text", "everything in the abdomen", "--store", store.folder, "--output", here / "a.seg.nrrd")
    assert lorkd("segment", ct, *words).status == 0
    targets = [Target("", structure(name)) for name in store.header("abdomen")["structures"]]
    expected = Predictor(store).segment(read_volume(ct), targets, keep_overlaps=True).layers
    assert expected is not None
    image = sitk.ReadImage(str(here / "a.seg.nrrd"))
    assert image.GetNumberOfComponentsPerPixel() == len(expected.arrays) > 1
    assert [image.GetMetaData(f"Segment{n}_Name") for n in range(len(targets))] == [t.structure.name for t in targets]


def test_fallback_is_told(lorkd: Callable, store: ExpertStore, ct: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Predictor.segment
    told = "abdomen: cuda has too little memory"
    monkeypatch.setattr(Predictor, "segment", lambda *given, **named: replace(real(*given, **named), fallback=told))
    assert lorkd("segment", ct, "--text", "liver", "--store", store.folder).err == f"lorkd: {told}\n"


def test_department_modality_and_device_are_used(lorkd: Callable, store: ExpertStore, ct: Path) -> None:
    words = ("--department", "Thorax", "--modality", "mri", "--device", "cpu", "--store", store.folder)
    outcome = lorkd("segment", ct, "--text", "trachea; liver", *words)
    assert outcome.status == 0
    assert "read as mri, on cpu" in outcome.out
    assert outcome.err == "lorkd: 'liver' belongs to abdomen, not to thorax; choose abdomen or auto\n"


def test_force_overwrites(lorkd: Callable, here: Path, store: ExpertStore, ct: Path) -> None:
    (here / "ct_lorkd.nii.gz").write_text("old")
    assert lorkd("segment", ct, "--text", "liver", "--store", store.folder, "--force").status == 0
    assert nibabel.load(here / "ct_lorkd.nii.gz").shape == (9, 8, 7)


def test_a_dicom_folder(lorkd: Callable, here: Path, store: ExpertStore, tmp_path: Path) -> None:
    folder = tmp_path / "series 1"
    folder.mkdir()
    array = np.random.default_rng(0).integers(-500, 500, (8, 8, 8)).astype(np.int16)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index in range(8):
        image = sitk.GetImageFromArray(array[index])
        for tag, value in {
            "0008|0060": "CT",
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.4",
            "0008|0018": f"1.2.3.4.{index + 1}",
            "0020|0032": f"0\\0\\{3 * index}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(index),
        }.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{index}.dcm"))
        writer.Execute(image)
    outcome = lorkd("segment", folder, "--text", "liver", "--store", store.folder)
    assert (outcome.status, outcome.err) == (0, "")
    assert "read as ct" in outcome.out
    assert (here / "series 1_lorkd.nii.gz").exists()


def test_names_of_label_maps() -> None:
    names = {
        "a/ct.nii.gz": "ct",
        "b.c.NII": "b.c",
        "x.seg.nrrd": "x.seg",
        "m.mhd": "m",
        "folder/": "folder",
        "v1.2": "v1.2",
    }
    assert {name: str(default_output(Path(name))) for name in names} == {
        name: f"{stem}_lorkd.nii.gz" for name, stem in names.items()
    }
    assert default_output(Path("/")) == Path("_lorkd.nii.gz")


def test_progress_is_shown_on_a_terminal_only(
    lorkd: Callable, store: ExpertStore, ct: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("segment", ct, "--text", "liver; heart", "--store", store.folder, "--force")
    assert lorkd(*words).err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = lorkd(*words).err
    assert "abdomen" in shown
    assert "thorax" in shown


def test_an_interruption_leaves_nothing(
    lorkd: Callable, here: Path, store: ExpertStore, ct: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        def __init__(self, **_: object) -> None:
            self.n = 0

        def __enter__(self) -> "Interrupted":
            return self

        def __exit__(self, *_: object) -> None: ...

        def set_description(self, *_: object, **__: object) -> None: ...

        def reset(self, *_: object) -> None: ...

        def update(self, number: int) -> None:
            self.n += number
            if self.n:
                raise KeyboardInterrupt

    monkeypatch.setattr("tqdm.tqdm", Interrupted)
    outcome = lorkd("segment", ct, "--text", "liver", "--store", store.folder)
    assert (outcome.status, outcome.out, outcome.err) == (130, "", "lorkd: interrupted\n")
    assert list(here.iterdir()) == []
