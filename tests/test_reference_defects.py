"""One test for each defect known of the published implementations of LoRKD: it would have caught the defect.

In order: those of the low-rank layers (``layer``), then those of the code for classification (``cls``). Those of the
code for segmentation are in ``test_reference_segmentation.py``.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lorkd_monailabel.experts import Base, Expert, fuse, fused_network, plain_network
from lorkd_monailabel.learning.decomposition import Decomposition
from lorkd_monailabel.learning.engine import Engine
from lorkd_monailabel.learning.losses import Objective, feature_transfer_loss
from lorkd_monailabel.learning.norms import department_norms
from lorkd_monailabel.learning.sampler import ShareOfSamples
from lorkd_monailabel.learning.samples import Samples
from lorkd_monailabel.learning.trainer import Trainer
from lorkd_monailabel.networks import mixed_batch
from lorkd_monailabel.networks.classifier import Classifier, build_student, feature_projection
from lorkd_monailabel.networks.low_rank import Factors, delta_weight
from lorkd_monailabel.networks.mixed_batch import mixed_forward
from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.teachers.network import NetworkTeacher
from lorkd_monailabel.text_encoder import QueryTable
from train.settings import DecomposeConfig

MakeExpert = Callable[..., Expert]
ABDOMEN_AND_THORAX = ("abdomen", "thorax")


def conv_and_factors(ranks: dict[str, int], *, bias: bool = True) -> tuple[nn.Conv2d, dict[str, Factors]]:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 4, 3, padding=1, bias=bias)
    weights = dict(conv.named_parameters())
    factors = {
        name: Factors(weights, ranks={"weight": rank}, scales={"weight": 16 / rank}) for name, rank in ranks.items()
    }
    for own in factors.values():
        nn.init.normal_(own.lora_b[0], std=0.1)
    return conv, factors


def test_layer_builds_the_weights_of_the_departments_present_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    monkeypatch.setattr(mixed_batch, "delta_weight", lambda *given: built.append(given[0]) or delta_weight(*given))
    conv, factors = conv_and_factors({f"d{number}": 1 for number in range(8)})
    mixed_forward(conv, torch.randn(3, 6, 40, 40), ["d3", "d1", "d3"], factors=factors)
    assert {id(tensor) for tensor in built} == {id(factors[name].lora_a[0]) for name in ("d1", "d3")}


def test_layer_gives_absent_departments_no_gradient_so_that_weight_decay_leaves_them(
    table: QueryTable, make_samples: Callable[..., Samples]
) -> None:
    torch.manual_seed(0)
    decomposition = Decomposition(build_segmenter("tiny"), ranks=dict.fromkeys(ABDOMEN_AND_THORAX, 1))
    trained = [(decomposition.weights, 1e-2), (decomposition.factor_tensors(), 1e-2)]
    trainer = Trainer(
        decomposition.network,
        decomposition.weights_of,
        trained,
        queries=table,
        steps=9,
        weight_decay=0.5,
        engine=Engine(bf16=False),
    )
    samples = make_samples(*ABDOMEN_AND_THORAX)
    trainer.train_step([samples[index] for index in range(6)])  # both have momentum now
    before = copy.deepcopy(decomposition.factors)
    trainer.train_step([sample for sample in (samples[index] for index in range(6)) if sample.department == "abdomen"])
    moved = {
        name: not all(map(torch.equal, before[name].parameters(), own.parameters()))
        for name, own in decomposition.factors.items()
    }
    assert moved == {"abdomen": True, "thorax": False}
    assert all(tensor.grad is None for tensor in decomposition.factors["thorax"].parameters())


def test_layer_in_2d_has_its_bias_for_each_sample() -> None:
    conv, factors = conv_and_factors({"a": 2, "b": 2})
    images = torch.randn(3, 6, 5, 5)
    outputs = mixed_forward(conv, images, ["a", "b", "a"], factors=factors)
    for image, department, output in zip(images, "aba", outputs, strict=True):
        fused = fuse(dict(conv.named_parameters()), factors[department].pairs(), factors[department].scales)
        torch.testing.assert_close(output, functional_call(conv, fused, (image[None],))[0])


def test_layer_is_fused_once_and_the_base_stays(tiny_base: Base, make_expert: MakeExpert) -> None:
    expert = make_expert()
    before = {name: tensor.clone() for name, tensor in tiny_base.weights.items()}
    image, queries = torch.randn(1, 1, 8, 8, 8), torch.randn(2, 384)
    first, second = (fused_network(tiny_base, expert)(image, queries) for _ in range(2))
    assert torch.equal(first, second)
    weights = fuse(tiny_base.weights, expert.factors, expert.scales)
    assert torch.equal(
        first, functional_call(plain_network(tiny_base.network, tiny_base.weights), weights, (image, queries))
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_base.weights.items())
    other = fused_network(tiny_base, make_expert("thorax", seed=1))(image, queries)
    assert not torch.equal(first, other)  # and back again, from the untouched base
    assert torch.equal(first, fused_network(tiny_base, expert)(image, queries))


def test_layer_modes_return_the_network(tiny_base: Base, make_expert: MakeExpert) -> None:
    for network in (fused_network(tiny_base, make_expert()), build_segmenter("tiny"), build_student({"a": 2})):
        assert network.train() is network
        assert network.eval() is network


def test_linear_layer_has_its_scale_fused_and_unfused() -> None:
    linear = nn.Linear(6, 4)
    factors = Factors(dict(linear.named_parameters()), ranks={"weight": 2}, scales={"weight": 3.0})
    nn.init.normal_(factors.lora_b[0])
    inputs = torch.randn(2, 6)
    fused = functional_call(linear, fuse(dict(linear.named_parameters()), factors.pairs(), factors.scales), (inputs,))
    by_hand = linear(inputs) + 3.0 * inputs @ factors.lora_a[0].T @ factors.lora_b[0].T
    torch.testing.assert_close(fused, by_hand)
    torch.testing.assert_close(mixed_forward(linear, inputs, ["a", "a"], factors={"a": factors}), by_hand)


def test_layer_never_falls_back_to_the_base_for_an_unknown_department() -> None:
    conv, factors = conv_and_factors({"a": 1})
    with pytest.raises(ValueError, match="department 'knee' has no factors"):
        mixed_forward(conv, torch.randn(1, 6, 5, 5), ["knee"], factors=factors)
    with pytest.raises(ValueError, match="department 'knee' has no factors"):
        Decomposition(build_segmenter("tiny"), ranks={"abdomen": 1}).weights_of("knee")


@pytest.mark.parametrize("kernel", [(3, 3, 1), (1, 3, 3), (1, 1, 3)])
def test_layer_takes_kernels_that_are_no_cubes(kernel: tuple[int, int, int]) -> None:
    conv = nn.Conv3d(3, 4, kernel)
    weights = dict(conv.named_parameters())
    factors = {"a": Factors(weights, ranks={"weight": 2}, scales={"weight": 8.0})}
    nn.init.normal_(factors["a"].lora_b[0])
    image = torch.randn(1, 3, 4, 4, 4)
    fused = fuse(weights, factors["a"].pairs(), factors["a"].scales)
    torch.testing.assert_close(
        mixed_forward(conv, image, ["a"], factors=factors), functional_call(conv, fused, (image,)), rtol=1e-4, atol=1e-5
    )


def test_scale_follows_each_departments_own_rank() -> None:
    decomposition = Decomposition(build_segmenter("toy"), ranks={"abdomen": 4, "thorax": 8})
    for department, rank in (("abdomen", 4), ("thorax", 8)):
        own = decomposition.factors[department]
        for name, decoder in decomposition.layers.items():
            assert own.scales[name] == 16 / own.ranks[name]
            assert own.ranks[name] == rank * (2 if decoder else 1)


def test_cls_distillation_is_on(table: QueryTable, make_samples: Callable[..., Samples]) -> None:
    torch.manual_seed(0)
    network, foundation = build_segmenter("tiny").eval(), build_segmenter("tiny").eval()
    weights = dict(network.named_parameters())
    sample = make_samples("abdomen")[0]
    gradients = []
    for beta in (DecomposeConfig.beta, 0.0):
        trainer = Trainer(
            network,
            lambda department: weights,
            [(weights, 1e-2)],
            queries=table,
            steps=2,
            teacher=NetworkTeacher(foundation, table),
            objective=Objective(beta=beta),
            engine=Engine(bf16=False),
        )
        name = next(iter(network.low_rank_weights()))
        gradients.append(torch.autograd.grad(trainer.loss(sample, weights), weights[name])[0])
    assert DecomposeConfig.beta == 0.1
    assert not torch.allclose(*gradients)


def test_cls_rank_is_the_papers() -> None:
    assert DecomposeConfig.rank == 8


def test_cls_projection_between_student_and_teacher_learns() -> None:
    student, teacher = SimpleNamespace(feature_dim=4), SimpleNamespace(feature_dim=6)
    projection = feature_projection(student, teacher)
    optimizer = torch.optim.SGD(projection.parameters(), lr=1.0)
    features, target = torch.randn(8, 4), torch.randn(8, 6)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = feature_transfer_loss(projection(features), target, temperature=1.0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_cls_and_seg_have_a_warm_up() -> None:
    assert DecomposeConfig.warmup_steps > 0


def test_cls_every_recipe_is_run_by_a_test(root: Path) -> None:
    tested = "".join(path.read_text(encoding="utf-8") for path in (root / "tests" / "train").glob("test_*.py"))
    sources = {path.stem: path.read_text(encoding="utf-8") for path in (root / "train").glob("*.py")}
    sources = {name: text for name, text in sources.items() if "def main(" in text}
    recipes = [name for name, text in sources.items() if "= parse(" in text or "return run_recipe(" in text]
    assert {"decompose", "evaluate", "finetune", "pretrain"} <= set(recipes)
    for recipe in recipes:
        assert f"{recipe}.main(" in tested or f"train.{recipe}" in tested, recipe


def test_cls_the_last_batch_counts_even_if_it_is_short() -> None:
    network = nn.Sequential(nn.BatchNorm1d(1))
    batches = [torch.full((4, 1), 1.0), torch.full((2, 1), 4.0)]
    norms = department_norms(network, dict(network.named_parameters()), batches)
    assert norms["0.running_mean"].item() == pytest.approx(2.5)
    assert list(ShareOfSamples(0, 7)) == list(range(7))


def test_cls_departments_have_batch_statistics_of_their_own() -> None:
    torch.manual_seed(0)
    network = Classifier(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten()), 8, {"a": 2, "b": 2})
    nn.init.ones_(network.backbone[0].weight)
    images = {"a": torch.randn(6, 1, 2, 2), "b": torch.randn(6, 1, 2, 2) * 5 + 3}
    state = network.state_dict()
    for own in images.values():
        norms = department_norms(network, state, [own])
        features = functional_call(network.eval(), fuse(state, {}, {}, norms), (own,))
        channels = features.reshape(-1, 2, 4).transpose(0, 1).reshape(2, -1)
        torch.testing.assert_close(channels.mean(1), torch.zeros(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(channels.std(1), torch.ones(2), atol=1e-3, rtol=0)
