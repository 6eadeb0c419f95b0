"""Tests of lorkd_monailabel.active_learning.features: against the network's own way to its tokens."""

import pytest
import torch

from lorkd_monailabel.active_learning.features import image_feature, tokens
from lorkd_monailabel.experts import Base, plain_network
from lorkd_monailabel.networks.segmenter import Segmenter
from lorkd_monailabel.sliding_window import Cancelled


@pytest.fixture
def network(tiny_base: Base) -> Segmenter:
    return plain_network(tiny_base.network, tiny_base.weights)


def go_on(done: int, total: int) -> bool:
    return True


def test_tokens_are_those_that_the_query_decoder_reads(network: Segmenter) -> None:
    image, seen = torch.rand(1, 1, 8, 8, 8), []
    network.query_decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    network(image, torch.rand(2, 384))
    torch.testing.assert_close(tokens(network, image), seen[0])


def test_one_window_gives_the_mean_over_the_body(network: Segmenter) -> None:
    image = torch.zeros(1, 8, 8, 8)
    image[:, :4] = torch.rand(4, 8, 8) + 1  # the body; the rest is air
    wanted = tokens(network, image[None])[0][:, :2].flatten(1).mean(dim=1)
    torch.testing.assert_close(image_feature(network, image, (8, 8, 8), go_on), wanted)


def test_windows_side_by_side_cover_the_image(network: Segmenter) -> None:
    image = torch.rand(1, 11, 8, 5)  # the second window along X begins at 3
    told: list[tuple[int, int]] = []
    found = image_feature(network, image, (8, 8, 8), lambda *step: told.append(step) is None)
    assert told == [(0, 2), (1, 2)]
    assert found.shape == (24,)
    assert found.isfinite().all()


def test_twins_are_near_and_others_far(network: Segmenter) -> None:
    torch.manual_seed(0)
    smooth = torch.nn.functional.avg_pool3d(torch.rand(1, 20, 20, 20), 5, 1, 2)
    twin, rough = smooth + 0.001 * torch.rand(1, 20, 20, 20), torch.rand(1, 20, 20, 20)
    one, near, far = (image_feature(network, each, (8, 8, 8), go_on) for each in (smooth, twin, rough))
    assert (one - near).norm() * 10 < (one - far).norm()


def test_cancelled(network: Segmenter) -> None:
    with pytest.raises(Cancelled, match="after 1 of 8 windows"):
        image_feature(network, torch.rand(1, 16, 16, 16), (8, 8, 8), lambda done, total: done < 1)
