"""Tests of lorkd_monailabel.tasks.infer that need no server; the rest is in tests/server."""

import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from lorkd_monailabel import memory
from lorkd_monailabel.compat import allow_pydicom_3
from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.jobs import Jobs
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.sliding_window import Cancelled
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.tasks.last_volume import LastVolume

allow_pydicom_3()

from lorkd_monailabel.tasks import infer, last_volume  # noqa: E402


@pytest.fixture
def task(tmp_path: Path, tiny_base: Base, make_expert: Callable[..., Expert], monkeypatch: pytest.MonkeyPatch):
    """Free text, with an expert of the abdomen; results go into a folder of their own."""
    store = ExpertStore(tmp_path / "store")
    store.publish_base(tiny_base)
    store.publish(make_expert(structures=("liver", "spleen", "left kidney", "right kidney")))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    infer._made_for_this_process.cache_clear()
    return infer.TextTask(Predictor(store), Jobs(), LastVolume())


@pytest.fixture
def request_for(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A request to segment a small CT."""
    array = np.random.default_rng(0).normal(0, 300, (9, 8, 10)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([3.0, 3.0, 3.0, 1.0])), tmp_path / "ct.nii.gz")

    def make(text: str = "liver; spleen", **changed: Any) -> dict[str, Any]:
        return {"image": str(tmp_path / "ct.nii.gz"), "text": text, "job": str(uuid.uuid4()), **changed}

    return make


@pytest.fixture
def leaves_nothing(tmp_path: Path):
    """No file is left in the folder for results."""
    yield
    assert not [path for path in (tmp_path / "temporary").rglob("*") if path.is_file()]


def test_a_result_lies_where_no_client_saves_it(task, request_for, tmp_path):
    """The client's place would be the file's name in the temporary folder: it is removed when it is sent."""
    paths = [Path(task(request_for())[0]) for _ in range(2)]
    assert len(set(paths)) == 2
    for path in paths:
        assert path.is_file()
        assert path.parent.parent == tmp_path / "temporary"
        assert path.parent.stat().st_mode & 0o077 == 0
        path.unlink()
    paths[0].parent.rmdir()  # as what cleans temporary folders up does
    assert Path(task(request_for())[0]).is_file()


def test_titles_name_structures_and_nothing_that_was_typed(task, request_for):
    request = request_for("everything; the Liver of John Smith")
    task(request)
    assert task.jobs.get(request["job"]).title == "liver, spleen, left kidney and 1 more"


@pytest.mark.parametrize(("dtype", "pixel"), [("", sitk.sitkVectorUInt8), ("uint16", sitk.sitkVectorUInt16)])
def test_layers_have_the_type_asked_for(task, request_for, dtype, pixel):
    file, _ = task(request_for("everything", result_extension=".seg.nrrd", result_dtype=dtype))
    assert sitk.ReadImage(file).GetPixelID() == pixel


@pytest.mark.usefixtures("leaves_nothing")
def test_cancel_while_the_file_is_written(task, request_for, monkeypatch):
    request = request_for()
    real = infer.write_label_map

    def write(*given: Any) -> None:
        real(*given)
        assert task.jobs.get(request["job"]).stage == "write"
        assert task.jobs.cancel(request["job"])

    monkeypatch.setattr(infer, "write_label_map", write)
    with pytest.raises(Cancelled):
        task(request)
    assert task.jobs.get(request["job"]).state == "cancelled"


@pytest.mark.usefixtures("leaves_nothing")
def test_device_is_free_while_the_file_is_written(task, request_for, monkeypatch):
    real, written = infer.write_label_map, []

    def write(*given: Any) -> None:
        if not written:
            written.append("first")
            file, _ = task(request_for())  # in the same thread: it would wait for ever
            Path(file).unlink()
        real(*given)

    monkeypatch.setattr(infer, "write_label_map", write)
    file, _ = task(request_for())
    Path(file).unlink()
    assert written == ["first"]


@pytest.mark.usefixtures("leaves_nothing")
def test_volume_that_cannot_fit_is_not_read(task, request_for, monkeypatch):
    def read(*given: Any) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(memory, "free_bytes", lambda: 5000)
    monkeypatch.setattr(last_volume, "read_volume", read)
    request = request_for()
    with pytest.raises(ValueError, match="a volume of 9 x 8 x 10 voxels of 3 x 3 x 3 mm needs at least") as caught:
        task(request)
    status = task.jobs.get(request["job"])
    assert (status.state, status.message) == ("failed", str(caught.value))


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
@pytest.mark.usefixtures("leaves_nothing")
def test_memory_that_runs_out_on_the_way(task, request_for, monkeypatch, error):
    def segment(*given: Any, **named: Any) -> None:
        raise error

    monkeypatch.setattr(task.predictor, "segment", segment)
    request = request_for()
    with pytest.raises(ValueError, match="a volume of 9 x 8 x 10 voxels and 2 structures needs more memory than"):
        task(request)
    assert task.jobs.get(request["job"]).state == "failed"


@pytest.mark.usefixtures("leaves_nothing")
def test_fallback_is_told(task, request_for):
    def refuse(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if max(given[0].shape[2:]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with task.predictor.fused("abdomen").network.register_forward_pre_hook(refuse):
        file, answer = task(request_for())
    Path(file).unlink()
    assert answer["lorkd"]["fallback"] == (
        "abdomen: cpu has too little memory for windows of 8 x 8 x 8 voxels, so windows of 4 x 4 x 4 were used on cpu"
    )
