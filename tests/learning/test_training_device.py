"""What a step needs comes to the device of the run: to torch's device without numbers, which mixes with no other."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from lorkd_monailabel.learning.decomposition import Decomposition
from lorkd_monailabel.learning.distributed import World
from lorkd_monailabel.learning.engine import Engine
from lorkd_monailabel.learning.samples import Samples
from lorkd_monailabel.learning.trainer import Trainer, on_device
from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.teachers.network import NetworkTeacher
from lorkd_monailabel.text_encoder import QueryTable
from train.decompose import place_teacher

META = torch.device("meta")


def test_sample_queries_and_teacher_come_to_the_device_of_the_network(
    table: QueryTable, make_samples: Callable[..., Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *told, **more: nullcontext())  # which knows real devices alone
    with META:
        decomposition = Decomposition(build_segmenter("tiny"), ranks={"thorax": 1})
    engine = Engine(world=World(device=META), bf16=False)
    trained = [(decomposition.weights, 1e-3), (decomposition.factor_tensors(), 1e-3)]
    trainer = Trainer(decomposition.network, decomposition.weights_of, trained, queries=table, steps=1, engine=engine)
    sample = make_samples("thorax")[0]
    loss = trainer.loss(sample, trainer.weights("thorax"))
    loss.backward()
    assert loss.device == META
    assert {tensor.grad.device for tensor in decomposition.factor_tensors().values() if tensor.grad is not None} == {
        META
    }

    teacher = NetworkTeacher(build_segmenter("tiny").eval(), table)
    place_teacher(teacher, engine, name="foundation")
    assert teacher(sample.image.to(META), sample.names, sample.modality).device == META


def test_factors_that_no_phase_trained_are_fused_where_the_base_is() -> None:
    decomposition = Decomposition(build_segmenter("tiny"), ranks={"thorax": 1})
    decomposition.network.to(META)
    decomposition.weights = dict(decomposition.network.named_parameters())
    assert {tensor.device for tensor in decomposition.weights_of("thorax").values()} == {META}


def test_every_tensor_of_a_sample_moves(make_samples: Callable[..., Samples]) -> None:
    sample = make_samples("abdomen")[0]
    whole = replace(sample, annotated=torch.ones(len(sample.names), dtype=torch.bool), teacher=sample.masks)
    moved = on_device(whole, META)
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 4
    assert {tensor.device for tensor in tensors} == {META}
    assert on_device(sample, META).teacher is None
