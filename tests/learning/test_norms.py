"""Tests of lorkd_monailabel.learning.norms."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lorkd_monailabel.experts import fuse
from lorkd_monailabel.learning.norms import department_norms


@pytest.fixture
def network() -> nn.Sequential:
    """One layer, used before, so that its running statistics are some others."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2))
    network(5 + torch.randn(4, 1, 3, 3))
    return network.eval()


def weights_of(network: nn.Module, factor: float) -> dict[str, Tensor]:
    """Weights of a department whose convolution is ``factor`` and ``2 factor``."""
    return {**dict(network.named_parameters()), "0.weight": factor * torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1)}


def test_statistics_are_those_of_the_departments_images_under_its_weights(network: nn.Sequential) -> None:
    batches = [torch.tensor(values).reshape(2, 1, 1, 2) for values in ([1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 4.0, 4.0])]
    # By hand: means 3 and 2; sums of squares around them 4 + 1 + 0 + 9 = 14 and 4 * 4 = 16, each over 4 - 1.
    mean, variance = (3 + 2) / 2, (14 / 3 + 16 / 3) / 2
    found = department_norms(network, weights_of(network, 3.0), iter(batches))
    assert set(found) == {"1.running_mean", "1.running_var"}
    torch.testing.assert_close(found["1.running_mean"], torch.tensor([3 * mean, 6 * mean]))
    torch.testing.assert_close(found["1.running_var"], torch.tensor([9 * variance, 36 * variance]))
    assert not any(tensor.requires_grad for tensor in found.values())


def test_network_and_weights_stay_as_they_are(network: nn.Sequential) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    weights = weights_of(network, 3.0)
    copies = {name: tensor.detach().clone() for name, tensor in weights.items()}
    department_norms(network, weights, [torch.randn(4, 1, 2, 2)])
    assert not network.training
    assert network[1].momentum == 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(torch.equal(tensor, copies[name]) for name, tensor in weights.items())


def test_each_department_is_normalised_by_its_own_statistics_once_fused(network: nn.Sequential) -> None:
    """Of two departments with images of other brightness, shared statistics would fit neither."""
    base = {name: tensor.detach() for name, tensor in network.state_dict().items()}  # with the buffers
    for brightness in (-20.0, 20.0):
        images = brightness + torch.randn(64, 1, 4, 4)
        factors = {"0.weight": (torch.ones(1, 1), torch.randn(2, 1))}
        fused = fuse(base, factors, {"0.weight": 1.0})
        shared = functional_call(network, fused, (images,))
        own = fuse(base, factors, {"0.weight": 1.0}, department_norms(network, fused, images.split(16)))
        outputs = functional_call(network, own, (images,))
        torch.testing.assert_close(outputs.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-3, rtol=0)
        torch.testing.assert_close(outputs.std(dim=(0, 2, 3)), torch.ones(2), atol=0.05, rtol=0)
        assert shared.mean(dim=(0, 2, 3)).abs().max() > 1


def test_a_network_without_batch_norm_needs_none() -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.InstanceNorm3d(2, affine=True))

    def unread() -> object:
        raise AssertionError("the batches were read")
        yield

    assert department_norms(network, dict(network.named_parameters()), unread()) == {}
    assert department_norms(nn.BatchNorm1d(2, affine=False, track_running_stats=False), {}, unread()) == {}


def test_a_batch_norm_by_itself_is_named() -> None:
    found = department_norms(nn.BatchNorm1d(1, affine=False), {}, [torch.tensor([[1.0], [3.0]])])
    assert found == {"running_mean": torch.tensor([2.0]), "running_var": torch.tensor([2.0])}


def test_wrong_weights_and_no_images_are_refused(network: nn.Sequential) -> None:
    good, images = weights_of(network, 1.0), [torch.randn(4, 1, 2, 2)]
    lacking = {name: tensor for name, tensor in good.items() if name != "0.weight"}
    for wrong in (lacking, {**good, "0.weight": torch.zeros(2, 1, 3, 3)}):
        with pytest.raises(ValueError, match=r"differ in 0\.weight; give the weights of this network"):
            department_norms(network, wrong, images)
    with pytest.raises(ValueError, match=r"differ in 2\.weight; give"):
        department_norms(network, {**good, "2.weight": torch.zeros(2)}, images)
    with pytest.raises(ValueError, match="no batch to take statistics of; give at least one"):
        department_norms(network, good, [])
