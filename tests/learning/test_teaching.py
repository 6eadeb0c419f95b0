"""Tests of teachers of others in the decomposition: masks made before, and networks with a channel for a structure."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch.func import functional_call

from lorkd_monailabel.learning import prepared as prepared_module
from lorkd_monailabel.learning.cases import case_of, departments_of
from lorkd_monailabel.learning.decomposition import Decomposition
from lorkd_monailabel.learning.engine import Engine
from lorkd_monailabel.learning.losses import Objective, task_loss, transfer_loss
from lorkd_monailabel.learning.prepared import PreparedCase, prepare
from lorkd_monailabel.learning.samples import Samples
from lorkd_monailabel.learning.trainer import Trainer
from lorkd_monailabel.learning.training import Loop, run
from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.teachers.channels import ChannelTeacher, channels_of
from lorkd_monailabel.teachers.masks import StoredMasks
from lorkd_monailabel.teachers.protocol import Teacher
from lorkd_monailabel.text_encoder import QueryTable

WriteCase = Callable[..., dict[str, Any]]
TEACHER_VALUES = {"liver": [1], "right kidney": [3], "heart": [2]}


def labels() -> np.ndarray:
    array = np.zeros((14, 12, 12), dtype=np.int16)
    array[2:6, 2:8, 3:7], array[7:11, 4:9, 3:8], array[11:13, 2:5, 5:8] = 1, 2, 3
    return array


@pytest.fixture
def record(write_case: WriteCase) -> dict[str, Any]:
    """A case of which the spleen alone is annotated, where the teacher has a heart."""
    return write_case(labels(), {"spleen": ("abdomen", [2])})


@pytest.fixture
def preparation(record: dict[str, Any], tmp_path: Path) -> Callable[..., PreparedCase]:
    """Prepare the case with the masks of a teacher."""

    def make(teacher: Any, **changed: Any) -> PreparedCase:
        case = case_of({**record, "teacher": teacher}, folder=tmp_path)
        told = {"department": "abdomen", "spacing_mm": 3.0, "margin_mm": 6.0, "cache": tmp_path / "cache", **changed}
        return prepare(case, **told)

    return make


Preparation = Callable[..., PreparedCase]


def write_folder(folder: Path, *, soft: bool = False, affine: np.ndarray | None = None) -> dict[str, str]:
    folder.mkdir()
    for name, values in TEACHER_VALUES.items():
        mask = np.isin(labels(), values) * (0.75 if soft else 1)
        file = folder / f"{name.replace('right kidney', 'kidney_right')}.nii.gz"
        nibabel.save(
            nibabel.Nifti1Image(mask.astype(np.float32), np.diag([3.0, 3, 3, 1]) if affine is None else affine), file
        )
    return {"folder": folder.name}


def stream(case: PreparedCase, **changed: Any) -> Samples:
    told = {
        "weights": {"abdomen": 1.0},
        "patch": 8,
        "stride": 2,
        "max_queries": 4,
        "augment": False,
        "seed": 0,
        **changed,
    }
    return Samples({"abdomen": [case]}, **told)


def test_one_label_volume_and_a_folder_of_hard_masks_give_equal_samples(
    preparation: Preparation, tmp_path: Path, record: dict[str, Any]
) -> None:
    one = preparation({"path": record["label"], "values": TEACHER_VALUES})
    other = preparation(write_folder(tmp_path / "preds"))
    # The case has no heart of its own and the abdomen none at all.
    assert set(one.centres) == set(other.centres) == {"spleen", "liver", "right kidney"}
    # The cut surrounds the teacher's too, 2..12, 2..8 and 3..7: 6 mm are two voxels.
    assert one.labels.shape == other.labels.shape == (14, 11, 9)
    for augment in (False, True):
        first, second = (stream(case, augment=augment, patch=(8, 6, 7)) for case in (one, other))
        moved = 0
        for index in range(12):
            a, b = first[index], second[index]
            assert a.image.shape == (1, 8, 6, 8)
            assert a.names == b.names
            assert a.teacher is not None
            assert b.teacher is not None
            torch.testing.assert_close(a.teacher, b.teacher, rtol=0, atol=0, equal_nan=True)
            truth = np.asarray(one.labels)  # of the liver, the case's label volume has it too
            for name, mask, taught in zip(a.names, a.masks, a.teacher, strict=True):
                annotated = a.annotated is None or bool(a.annotated[a.names.index(name)])
                assert annotated == (name == "spleen") == bool(taught.isnan().all())
                assert annotated or not mask.any()
                if not annotated and not augment:
                    assert set(taught.unique().tolist()) <= {0.0, 1.0}
                    assert taught.sum() <= (truth == TEACHER_VALUES[name][0]).sum()
                moved += bool(not annotated and taught.any())
        assert moved


@pytest.mark.parametrize("augment", [False, True])
def test_the_teachers_masks_move_with_the_image(
    preparation: Preparation, record: dict[str, Any], augment: bool
) -> None:
    known = preparation({"path": record["label"], "values": {"spleen": [2]}}, margin_mm=12.0)
    shifted = 0
    for index in range(16):
        sample = stream(known, augment=augment)[index]
        assert sample.annotated is None
        assert sample.teacher is not None
        assert torch.equal(sample.teacher[0], sample.masks[0])  # the same file, once as label, once as teacher
        shifted += bool(sample.masks.any())
    assert shifted
    case = known.case
    plain = stream(
        prepare(
            replace(case, teacher=None),
            department="abdomen",
            spacing_mm=3.0,
            margin_mm=12.0,
            cache=case.label.parent / "c",
        ),
        augment=augment,
    )
    with_teacher = stream(known, augment=augment)
    for index in range(4):  # a teacher changes nothing of what is drawn
        assert torch.equal(plain[index].image, with_teacher[index].image)
        assert plain[index].names == with_teacher[index].names
        assert plain[index].teacher is None


def test_soft_masks_stay_soft(preparation: Preparation, tmp_path: Path) -> None:
    case = preparation(write_folder(tmp_path / "preds", soft=True))
    assert case.teacher is not None
    assert not case.teacher.hard
    for augment, least in ((False, 0.75), (True, 0.0)):
        values = set()
        for index in range(8):
            sample = stream(case, augment=augment)[index]
            assert sample.teacher is not None
            known = sample.teacher[~sample.teacher.isnan()]
            assert ((known >= 0) & (known <= 0.7501)).all()
            values |= set(known.tolist()) - {0.0}
        assert values
        assert min(values) >= least


def test_masks_are_kept_apart_by_file_and_settings(preparation: Preparation, tmp_path: Path, monkeypatch: Any) -> None:
    told = write_folder(tmp_path / "preds")
    first = preparation(told)

    def refuse(*arguments: object) -> None:
        raise AssertionError("read anew")

    with monkeypatch.context() as patch:
        patch.setattr(prepared_module, "read_volume", refuse)
        again = preparation(told)
        assert again.teacher is not None
        assert isinstance(again.teacher.array, prepared_module.MappedArray)
        assert first.teacher is not None
        assert np.array_equal(again.teacher.array, first.teacher.array)
        for changed in ({"intensities": "sat"}, {"spacing_mm": (3.0, 3.0, 2.0)}, {"margin_mm": (6.0, 6.0, 3.0)}):
            with pytest.raises(AssertionError, match="read anew"):
                preparation(told, **changed)
        (tmp_path / "preds/liver.nii.gz").touch()
        with pytest.raises(AssertionError, match="read anew"):
            preparation(told)


def test_the_case_and_the_file_are_named(preparation: Preparation, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"case 'case' of synthetic: the teacher's folder .*preds is not there"):
        preparation({"folder": "preds"})
    elsewhere = np.diag([3.0, 3, 3, 1])
    elsewhere[2, 3] = 9
    told = write_folder(tmp_path / "moved", affine=elsewhere)
    with pytest.raises(ValueError, match=r"case 'case' of synthetic: .*nii\.gz lies elsewhere in space"):
        preparation(told)
    assert not (tmp_path / "cache").exists()


def test_departments_are_those_that_the_teacher_knows_too(record: dict[str, Any], tmp_path: Path) -> None:
    case = case_of({**record, "teacher": {"path": record["label"], "values": TEACHER_VALUES}}, folder=tmp_path)
    assert departments_of([case]) == ("abdomen", "thorax")
    assert case.taught_alone("thorax") == ("heart",)
    assert departments_of([replace(case, teacher=None)]) == ("abdomen",)


def test_structures_without_labels_follow_the_teacher_alone(
    make_samples: Callable[..., Samples], table: QueryTable
) -> None:
    (case,) = make_samples("abdomen").cases["abdomen"]
    masks = {"spleen": case.labels == 2, "right kidney": case.labels == 1}
    sample = stream(
        replace(case, teacher=StoredMasks.of(masks), centres={**case.centres, "right kidney": case.centres["liver"]})
    )[0]
    assert sample.annotated is not None
    assert sample.teacher is not None
    network = build_segmenter("tiny").eval()
    weights = dict(network.named_parameters())
    trainer = Trainer(
        network,
        lambda department: weights,
        [(weights, 1.0)],
        queries=table,
        steps=1,
        objective=Objective(beta=2.0),
        engine=Engine(bf16=False),
    )
    queries = table.queries(sample.names, "ct")
    logits = functional_call(network, weights, (sample.image[None], queries))
    own = {name: row for row, name in enumerate(sample.names)}
    labelled, taught = [own["liver"], own["spleen"]], [own["spleen"], own["right kidney"]]
    expected = task_loss(logits[:, labelled], sample.masks[None, labelled])
    expected = expected + 2 * transfer_loss(logits[:, taught], sample.teacher[None, taught])
    assert trainer.loss(sample, weights).item() == pytest.approx(expected.item(), rel=1e-5)


def follow(samples: Samples, table: QueryTable, folder: Path, teacher: Teacher | None) -> tuple[float, float]:
    """Decompose with nearly nothing but the teacher; the transfer loss of the liver before and after."""
    torch.manual_seed(0)
    decomposition = Decomposition(
        build_segmenter(
            "tiny",
        ).eval(),
        ranks={"abdomen": 2},
    )

    def loss() -> float:
        network, found = decomposition.network, []
        with torch.no_grad():
            for index in range(100, 106):
                sample = samples[index]
                row = sample.names.index("liver")
                queries = table.queries(["liver"], "ct")
                logits = functional_call(network, decomposition.weights_of("abdomen"), (sample.image[None], queries))
                told = sample.teacher if teacher is None else teacher(sample.image, sample.names, "ct")
                assert told is not None
                found.append(transfer_loss(logits, told[None, row : row + 1]).item())
        return sum(found) / len(found)

    before = loss()
    trained = [(decomposition.weights, 1e-2), (decomposition.factor_tensors(), 1e-2)]
    trainer = Trainer(
        decomposition.network,
        decomposition.weights_of,
        trained,
        queries=table,
        steps=60,
        teacher=teacher,
        objective=Objective(beta=30.0),
        engine=Engine(bf16=False),
    )
    run(trainer, samples, Loop(2, lambda: False, workers=0), checkpoint=folder / "run.pt", report=lambda progress: None)
    return before, loss()


def test_masks_made_before_teach_a_structure_that_nobody_labelled(
    preparation: Preparation, record: dict[str, Any], table: QueryTable, tmp_path: Path
) -> None:
    case = preparation({"path": record["label"], "values": {"liver": [1]}}, margin_mm=12.0)
    before, after = follow(stream(case), table, tmp_path, None)
    assert after < before / 5


def test_a_network_of_channels_teaches_against_the_labels(
    write_case: WriteCase, table: QueryTable, tmp_path: Path
) -> None:
    # The liver is annotated as absent everywhere; the teacher sees it where the image is bright (100 Hounsfield units).
    record = write_case(np.minimum(labels(), 1), {"liver": ("abdomen", [9]), "spleen": ("abdomen", [1])})
    case = prepare(
        case_of(record, folder=tmp_path), department="abdomen", spacing_mm=3.0, margin_mm=12.0, cache=tmp_path / "cache"
    )
    told = {"channels": ["liver"], "activation": "sigmoid", "modality": "ct", "multiple_of": 1}
    channels = channels_of({**told, "intensities": {"from": [0, 100], "to": [-4, 4]}}, "test")
    teacher = ChannelTeacher(lambda image: image, channels, name="test")
    before, after = follow(stream(case), table, tmp_path, teacher)
    assert after < before / 5
