"""Tests of lorkd_monailabel.memory."""

import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from lorkd_monailabel import memory
from lorkd_monailabel.memory import (
    Extent,
    announced,
    attempts,
    check_memory,
    free_bytes,
    halved,
    is_out_of_memory,
    least_bytes,
    on_cpu,
)
from lorkd_monailabel.networks.segmenter import build_segmenter

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def test_files_say_how_large_they_are(tmp_path):
    affine = np.array([[0, -2.0, 0, 5], [3.0, 0, 0, 6], [0, 0, 4.0, 7], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 6, 7), np.int16), affine), tmp_path / "a.nii.gz")
    assert announced(tmp_path / "a.nii.gz") == Extent((5, 6, 7), (3.0, 2.0, 4.0))
    image = sitk.GetImageFromArray(np.zeros((7, 6, 5), np.int16))
    image.SetSpacing((3, 2, 4))
    for name in ("a.nrrd", "a.mha"):
        sitk.WriteImage(image, str(tmp_path / name))
        assert announced(tmp_path / name) == Extent((5, 6, 7), (3.0, 2.0, 4.0))


def test_voxels_are_not_read(tmp_path):
    """A header that announces a hundred times what its file holds."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((3000, 3000, 3000))
    header.set_data_dtype(np.int16)
    header.set_sform(np.eye(4), code=1)
    with (tmp_path / "a.nii").open("wb") as file:
        header.write_to(file)
        file.write(bytes(1000))
    assert announced(tmp_path / "a.nii") == Extent((3000, 3000, 3000), (1.0, 1.0, 1.0))


def test_files_that_say_nothing(tmp_path):
    (tmp_path / "text.nii.gz").write_text("not an image", encoding="utf-8")
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\n")
    singular = nibabel.Nifti1Image(np.zeros((5, 6, 7), np.int16), None)
    singular.header["srow_x"] = singular.header["srow_y"] = singular.header["srow_z"] = 0
    singular.header["sform_code"] = 1
    (tmp_path / "singular.nii").write_bytes(singular.header.binaryblock + bytes(4 + 420))
    damaged = singular.header.copy()
    damaged.structarr["datatype"] = 9999
    (tmp_path / "damaged.nii").write_bytes(damaged.binaryblock + bytes(4 + 420))
    packed = bytearray(gzip.compress(bytes(1000)))
    packed[12] ^= 255
    (tmp_path / "packed.nii.gz").write_bytes(packed)
    for name in ("text.nii.gz", "a.nrrd", "absent.nii", "singular.nii", "damaged.nii", "packed.nii.gz", "."):
        assert announced(tmp_path / name) is None, name


def test_least_by_hand():
    extent = Extent((100, 100, 50), (1.0, 1.0, 2.0))  # 0.5 million voxels, 1 million mm3
    assert least_bytes(extent, []) == 2 * 4 * 500_000
    # 27 mm3 a voxel of the expert: less than the volume itself
    assert least_bytes(extent, [((3.0, 3.0, 3.0), 5)]) == 2 * 4 * 500_000
    # 1 mm3: image, weights and five masks of 1 million voxels each, of which the larger expert counts
    experts = [((1.0, 1.0, 1.0), 5), ((2.0, 1.0, 1.0), 6)]
    assert least_bytes(extent, experts) == 4 * 500_000 + 4 * 1_000_000 * 7


def test_refusal_names_the_numbers(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 3_000_000_000)
    check_memory(Extent((512, 512, 600), (0.8, 0.8, 1.0)), [((3.0, 3.0, 3.0), 10)])
    with pytest.raises(
        ValueError,
        match=r"a volume of 1024 x 1024 x 600 voxels of 0.8 x 0.8 x 1 mm needs at least 5.0 GB of memory for this, "
        r"but 3.0 GB are free; crop it, or name fewer structures",
    ):
        check_memory(Extent((1024, 1024, 600), (0.8, 0.8, 1.0)), [((3.0, 3.0, 3.0), 10)])
    # a small file with large voxels would become a large image
    with pytest.raises(ValueError, match="needs at least"):
        check_memory(Extent((30, 30, 30), (1000.0, 1000.0, 1000.0)), [((3.0, 3.0, 3.0), 1)])
    check_memory(None, [])
    monkeypatch.setattr(memory, "free_bytes", lambda: None)
    check_memory(Extent((9999, 9999, 9999), (1.0, 1.0, 1.0)), [])


def test_what_the_allocator_keeps_is_handed_back_before_a_volume_is_refused(monkeypatch):
    kept = [4_000_000_000]
    monkeypatch.setattr(memory, "hand_back", kept.clear)
    monkeypatch.setattr(memory, "free_bytes", lambda: 5_500_000_000 - sum(kept))
    small, large = (Extent((1024, 1024, slices), (0.8, 0.8, 1.0)) for slices in (100, 600))
    check_memory(small, [((3.0, 3.0, 3.0), 10)])
    assert kept  # it is of use for the next request
    check_memory(large, [((3.0, 3.0, 3.0), 10)])
    assert not kept


def test_free_memory_is_the_least_of_machine_and_container(tmp_path, monkeypatch):
    meminfo, limit, used, stat = (tmp_path / name for name in ("meminfo", "max", "current", "stat"))
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:   50 kB\n", encoding="ascii")
    used.write_text("30000\n", encoding="ascii")
    stat.write_text("anon 5\ninactive_file 4000\n", encoding="ascii")
    monkeypatch.setattr(memory, "_MEMINFO", str(meminfo))
    monkeypatch.setattr(memory, "_CGROUPS", ((str(limit), str(used), str(stat)),))
    assert free_bytes() == 51200  # no limit
    limit.write_text("max\n", encoding="ascii")
    assert free_bytes() == 51200
    limit.write_text("60000\n", encoding="ascii")
    assert free_bytes() == 34000
    meminfo.unlink()
    limit.unlink()
    assert free_bytes() is None


def allocate_too_much() -> None:
    torch.empty(10**15)


def test_what_out_of_memory_is():
    with pytest.raises(RuntimeError) as caught:
        allocate_too_much()
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_attempts_by_hand():
    assert attempts(GPU, (96, 96, 48), 32) == [
        (GPU, (96, 96, 48)),
        (GPU, (32, 32, 32)),
        (CPU, (96, 96, 48)),
        (CPU, (32, 32, 32)),
    ]
    assert attempts(CPU, (40, 40, 40), 8) == [(CPU, (40, 40, 40)), (CPU, (16, 16, 16))]
    assert attempts(CPU, (8, 8, 8), 8) == [(CPU, (8, 8, 8))]
    assert halved((96, 64, 8), 8) == (48, 32, 8)


def test_copy_on_the_processor_leaves_the_network_where_it_is():
    network = build_segmenter("tiny").requires_grad_(False).eval()
    network.register_buffer("number", torch.ones(1))
    copied = on_cpu(network)
    image, queries = torch.randn(1, 1, 8, 8, 8), torch.randn(2, 384)
    assert torch.equal(copied(image, queries), network(image, queries))
    assert not copied.training
    assert copied is not network
