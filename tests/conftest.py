"""What tests share: the tree as a whole, and tiny bases, experts and cases."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:  # torch takes seconds to import, and many tests need none of it
    from lorkd_monailabel.experts import Base, Expert
    from lorkd_monailabel.learning.prepared import PreparedCase
    from lorkd_monailabel.learning.samples import Samples
    from lorkd_monailabel.text_encoder import QueryTable

ROOT = Path(__file__).resolve().parents[1]
MADE_BY_TOOLS = {"__pycache__", "build", "dist", "bin", "lib", "logs", "model"}


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def project_files() -> list[Path]:
    """Every file of the project, relative to its top: what git tracks or would track; without git, what lies there."""
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode == 0:
        files = [Path(name) for name in listing.stdout.split("\0") if name]
    else:
        files = [path.relative_to(ROOT) for path in ROOT.rglob("*")]
        kept = {".ci", ".gitignore", ".pre-commit-config.yaml"}
        files = [
            path
            for path in files
            if not MADE_BY_TOOLS.intersection(path.parts)
            and not path.parts[0].endswith(".egg-info")
            and (not path.parts[0].startswith(".") or path.parts[0] in kept)
        ]
    files = sorted(path for path in files if (ROOT / path).is_file())
    assert Path("pyproject.toml") in files
    return files


@pytest.fixture(scope="session")
def table() -> "QueryTable":
    """The package's own query table."""
    from lorkd_monailabel.shipped import QUERIES
    from lorkd_monailabel.text_encoder import QueryTable

    return QueryTable.load(QUERIES)


@pytest.fixture(scope="session")
def tiny_base(table: "QueryTable") -> "Base":
    """A base of the tiny network with random weights that claim about half of all voxels."""
    import torch

    from lorkd_monailabel.experts import Base
    from lorkd_monailabel.networks.segmenter import SIZES, build_segmenter

    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = {name: tensor.detach().clone() for name, tensor in build_segmenter("tiny").state_dict().items()}
    weights["mask_embedding.2.bias"] = torch.tensor([0.0, 0.0, 0.0, 0.0, -0.2])
    return Base(network=SIZES["tiny"], weights=weights, window=8, query_space=table.space)


@pytest.fixture(scope="session")
def make_expert(tiny_base: "Base") -> "Callable[..., Expert]":
    """Make a random expert of the tiny base; the same seed gives the same one."""
    import torch

    from lorkd_monailabel.experts import Expert
    from lorkd_monailabel.networks.low_rank import factor_shapes
    from lorkd_monailabel.networks.segmenter import build_segmenter

    names = build_segmenter("tiny").low_rank_weights()

    def make(department: str = "abdomen", *, seed: int = 0, rank: int = 1, **changed: Any) -> Expert:
        generator = torch.Generator().manual_seed(seed)
        factors = {}
        for name in names:
            a_shape, b_shape = factor_shapes(tiny_base.weights[name].shape, rank)
            factors[name] = (
                torch.randn(a_shape, generator=generator),
                torch.randn(b_shape, generator=generator),
            )
        fields: dict[str, Any] = {
            "department": department,
            "base_sha256": tiny_base.sha256,
            "factors": factors,
            "scales": dict.fromkeys(names, 0.25),
            "ranks": dict.fromkeys(names, rank),
            "spacing_mm": 3.0,
            "structures": ("liver", "spleen"),
        }
        return Expert(**{**fields, **changed})

    return make


@pytest.fixture(scope="session")
def make_prepared() -> "Callable[..., PreparedCase]":
    """Make a prepared case in memory; ``structures`` maps names to departments and values in the labels."""
    from lorkd_monailabel.learning.cases import Case
    from lorkd_monailabel.learning.prepared import PreparedCase

    def make(
        labels: np.ndarray,
        structures: dict[str, tuple[str, tuple[int, ...]]],
        *,
        department: str = "abdomen",
        image: np.ndarray | None = None,
        source: str = "synthetic",
    ) -> PreparedCase:
        case = Case(
            image=Path("image"),
            label=Path("label"),
            modality="ct",
            source=source,
            subject="one",
            split="train",
            structures={name: values for name, (_, values) in structures.items()},
            departments={name: own for name, (own, _) in structures.items()},
        )
        centres = {name: np.argwhere(np.isin(labels, case.structures[name])) for name in case.of(department)}
        image = (labels if image is None else image).astype(np.float16)
        return PreparedCase(case, department, image, labels.astype(np.int16), centres)

    return make


@pytest.fixture(scope="session")
def make_samples(make_prepared: "Callable[..., PreparedCase]") -> "Callable[..., Samples]":
    """Make a stream of samples of departments, each with one noisy case of two structures."""
    from lorkd_monailabel.learning.samples import Samples

    names = {"abdomen": ("liver", "spleen"), "thorax": ("heart", "trachea"), "spine": ("L1 vertebra", "L2 vertebra")}

    def make(*departments: str, seed: int = 0) -> Samples:
        cases = {}
        for number, department in enumerate(departments):
            labels = np.zeros((10, 10, 10), dtype=np.int16)
            labels[2:5, 2:8, 3:6] = 1
            labels[6:9, 4 - number : 8, 3:8] = 2
            image = labels + np.random.default_rng(number).normal(0, 0.2, labels.shape)
            structures = {name: (department, (value,)) for value, name in enumerate(names[department], start=1)}
            cases[department] = [make_prepared(labels, structures, department=department, image=image)]
        return Samples(
            cases,
            weights=dict.fromkeys(cases, 1.0),
            patch=8,
            stride=2,
            max_queries=2,
            augment=False,
            seed=seed,
        )

    return make


@pytest.fixture
def write_case(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Write an image and a label volume as NIfTI and give their line of a list of cases."""
    import nibabel

    def write(
        labels: np.ndarray,
        structures: dict[str, tuple[str, list[int]]],
        *,
        affine: np.ndarray | None = None,
        image: np.ndarray | None = None,
        name: str = "case",
        **changed: Any,
    ) -> dict[str, Any]:
        affine = np.diag([3.0, 3.0, 3.0, 1.0]) if affine is None else affine
        noise = np.random.default_rng(len(name)).normal(0, 10, labels.shape)
        image = labels * 100.0 + noise if image is None else image
        for kind, array in (("image", image.astype(np.float32)), ("label", labels.astype(np.int16))):
            nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / f"{name}_{kind}.nii.gz")
        record = {
            "image": f"{name}_image.nii.gz",
            "label": f"{name}_label.nii.gz",
            "modality": "ct",
            "source": "synthetic",
            "subject": name,
            "split": "train",
            "structures": {
                structure: {"department": department, "values": values}
                for structure, (department, values) in structures.items()
            },
        }
        return {**record, **changed}

    return write


@pytest.fixture
def write_list(tmp_path: Path) -> Callable[[list[Any]], Path]:
    """Write a list of cases; text stands as it is."""

    def write(lines: list[Any]) -> Path:
        path = tmp_path / "cases.jsonl"
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        path.write_text(text + "\n", encoding="utf-8")
        return path

    return write


OBLIQUE = np.array([[2, -1, 2], [2, 2, -1], [-1, 2, 2]]) / 3  # columns: along a row, down a column, from slice to slice


@pytest.fixture(scope="session")
def make_series() -> "Callable[..., np.ndarray]":
    """Write a DICOM series of noise, oblique if not told otherwise, and give its values (columns, rows, slices)."""
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

    def make(
        folder: Path,
        *,
        uid: str = "1.2.826.0.1.3680043.10.1",
        modality: str = "CT",
        directions: np.ndarray = OBLIQUE,
        shape: tuple[int, int, int] = (11, 9, 6),
        missing: tuple[int, ...] = (),
        shear_mm: float = 0.0,
        slopes: tuple[float, ...] = (1.0,),
        image_type: str = "ORIGINAL",
    ) -> np.ndarray:
        folder.mkdir(parents=True, exist_ok=True)
        stored = np.random.default_rng(int(uid.rpartition(".")[2])).integers(0, 2000, shape).astype(np.int16)
        values = np.empty(shape, np.float32)
        for z in range(shape[2]):
            slope = slopes[z % len(slopes)]
            values[:, :, z] = stored[:, :, z] * slope - 1000
            file = pydicom.Dataset()
            file.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
            file.SOPInstanceUID = f"{uid}.{z + 1}"
            file.StudyInstanceUID, file.SeriesInstanceUID = "1.2.826.0.1.3680043.10", uid
            file.FrameOfReferenceUID = f"{uid}.0"
            file.PatientName, file.PatientID = "Doe^Jane", "MRN-4711"
            file.PatientBirthDate, file.PatientSex = "19700101", "F"
            file.StudyDate, file.StudyTime, file.StudyID, file.AccessionNumber = "20260101", "120000", "1", ""
            file.ReferringPhysicianName, file.Manufacturer, file.PositionReferenceIndicator = "", "", ""
            file.Modality, file.SeriesNumber, file.InstanceNumber = modality, 1, z + 1
            file.ImageType = [image_type, "PRIMARY", "AXIAL" if image_type == "ORIGINAL" else "LOCALIZER"]
            place = np.array([-30.0, 12.0, 55.0]) + directions[:, 2] * 2.5 * z + directions[:, 0] * shear_mm * z
            file.ImagePositionPatient = [f"{each:.8g}" for each in place]
            file.ImageOrientationPatient = [f"{each:.8g}" for each in directions[:, :2].T.ravel()]
            file.PixelSpacing, file.SliceThickness = [0.9, 0.7], 2.5
            file.Columns, file.Rows, _ = shape
            file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
            file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 1
            file.RescaleSlope, file.RescaleIntercept = slope, -1000
            file.PixelData = stored[:, :, z].T.tobytes()
            file.file_meta = pydicom.dataset.FileMetaDataset()
            file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            file.is_little_endian, file.is_implicit_VR = True, False
            if z not in missing:  # names run against the order in space
                file.save_as(folder / f"{uid}_Doe_Jane_{shape[2] - z}", write_like_original=False)
        return values

    return make


@pytest.fixture(scope="session")
def series_affine() -> "Callable[..., np.ndarray]":
    """Voxel index to RAS+ mm of what ``make_series`` writes."""

    def make(directions: np.ndarray = OBLIQUE) -> np.ndarray:
        affine = np.eye(4)
        affine[:3, :3] = directions * [0.7, 0.9, 2.5]
        affine[:3, 3] = -30, 12, 55
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine

    return make
