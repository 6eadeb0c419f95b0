"""One test for each defect known of LoRKD's published code for segmentation: it would have caught the defect."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lorkd_monailabel.departments import structure
from lorkd_monailabel.experts import Base, Expert, fused_network, plain_network
from lorkd_monailabel.label_maps import Merging, Segment, write_label_map
from lorkd_monailabel.learning.cases import case_of
from lorkd_monailabel.learning.decomposition import Decomposition
from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.prompts import Target, resolve
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.volumes import Grid, Volume

MakeExpert = Callable[..., Expert]


@pytest.fixture
def store(tmp_path: Path, tiny_base: Base, make_expert: MakeExpert) -> ExpertStore:
    """Experts of two departments."""
    store = ExpertStore(tmp_path / "store")
    store.publish_base(tiny_base)
    store.publish(make_expert())
    store.publish(make_expert("thorax", seed=1, structures=("heart", "trachea")))
    return store


@pytest.fixture
def volume() -> Volume:
    """8 x 8 x 8 voxels of 3 mm, away from the origin."""
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = [10, -20, 30]
    array = np.random.default_rng(0).normal(0, 300, (8, 8, 8)).astype(np.float32)
    return Volume(array, Grid((8, 8, 8), affine), "ct")


def test_every_prompt_goes_to_its_own_departments_expert(store: ExpertStore, volume: Volume) -> None:
    targets, _ = resolve("liver; heart; spleen")
    answers = Predictor(store).segment(volume, targets).answers
    assert [(answer.structure, answer.department) for answer in answers] == [
        ("liver", "abdomen"),
        ("heart", "thorax"),
        ("spleen", "abdomen"),
    ]


def test_a_structure_is_in_the_same_department_in_training_and_in_use() -> None:
    record = {"image": "i", "label": "l", "modality": "ct", "source": "s", "subject": "1", "split": "train"}
    record["structures"] = {"liver": {"values": [1], "department": "upper limb"}}
    with pytest.raises(ValueError, match=r"liver is a structure of abdomen, the case puts it into upper_limb"):
        case_of(record)
    record["structures"] = {"liver": {"values": [1], "department": "abdomen"}}
    assert case_of(record).departments["liver"] == structure("liver").department == "abdomen"


def test_runs_without_launcher_process_group_or_gpu(store: ExpertStore, volume: Volume) -> None:
    Predictor(store, device="cpu").segment(volume, [Target("liver", structure("liver"))])
    assert not torch.distributed.is_available() or not torch.distributed.is_initialized()


def test_output_lies_on_the_image(store: ExpertStore, volume: Volume, tmp_path: Path) -> None:
    prediction = Predictor(store).segment(volume, [Target("liver", structure("liver"))])
    write_label_map(prediction.label_map, tmp_path / "out.nii.gz")
    written = nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_allclose(written.affine, volume.grid.affine)
    assert written.shape == volume.array.shape


def test_overlaps_are_no_third_class() -> None:
    grid = Grid((2, 1, 1), np.eye(4))
    liver, spleen = Segment(1, structure("liver")), Segment(2, structure("spleen"))
    merging = Merging(grid)
    merging.add(liver, np.array([[[0.9]], [[0.6]]]))
    merging.add(spleen, np.array([[[0.8]], [[0.9]]]))
    assert merging.label_map().array.flatten().tolist() == [1, 2]


def test_only_the_experts_asked_for_are_in_memory_and_they_are_fused(store: ExpertStore, volume: Volume) -> None:
    predictor = Predictor(store)
    predictor.segment(volume, [Target("liver", structure("liver"))])
    assert [department for department, _ in predictor._networks] == ["abdomen"]
    names = {name for name, _ in predictor.fused("abdomen").network.named_parameters()}
    assert not any("lora" in name for name in names)


def test_a_table_of_parameters_is_counted_not_typed() -> None:
    with torch.device("meta"):
        equal, imbalanced = (Decomposition(build_segmenter("pro")) for _ in range(2))
        equal.attach(dict.fromkeys("abcdefgh", 8))
        imbalanced.attach(dict(zip("abcdefgh", (4, 4, 4, 4, 4, 16, 12, 12), strict=True)))
    counts = [
        sum(tensor.numel() for tensor in (*own.weights.values(), *own.factor_tensors().values()))
        for own in (equal, imbalanced)
    ]
    assert counts == [109_194_624 + 8 * 8 * 311_121, 127_861_884]


def test_a_fused_network_costs_what_the_base_costs(tiny_base: Base, make_expert: MakeExpert) -> None:
    image, queries = torch.randn(1, 1, 8, 8, 8), torch.randn(2, 384)
    counts = []
    for network in (plain_network(tiny_base.network, tiny_base.weights), fused_network(tiny_base, make_expert())):
        with FlopCounterMode(display=False) as counter:
            network(image, queries)
        counts.append((counter.get_total_flops(), sum(p.numel() for p in network.parameters())))
    assert counts[0] == counts[1]
