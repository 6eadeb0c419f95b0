"""Tests of lorkd_monailabel.networks.segmenter."""

import pytest
import torch
from torch.nn.functional import gelu

from lorkd_monailabel.networks.segmenter import SIZES, Segmenter, build_segmenter


@pytest.fixture
def tiny() -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter("tiny").eval()


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("nano", 57_235_872), ("pro", 109_194_624), ("sat_pro", 475_561_344), ("sat_huge", 1_154_190_592)],
)
def test_parameter_counts_of_the_papers(size: str, parameters: int) -> None:
    with torch.device("meta"):
        network = build_segmenter(size)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_one_mask_a_query_at_the_size_of_the_image(tiny: Segmenter) -> None:
    for count in (1, 5):
        assert tiny(torch.randn(2, 1, 4, 6, 8), torch.randn(count, 384)).shape == (2, count, 4, 6, 8)


def test_masks_are_independent_of_each_other(tiny: Segmenter) -> None:
    image, queries = torch.randn(1, 1, 4, 4, 4), torch.randn(4, 384)
    together = tiny(image, queries)
    torch.testing.assert_close(tiny(image, queries[2:3]), together[:, 2:3])
    torch.testing.assert_close(tiny(image, queries.flip(0)), together.flip(1))


def test_queries_are_for_all_images_or_for_each(tiny: Segmenter) -> None:
    images, queries = torch.randn(2, 1, 4, 4, 4), torch.randn(2, 3, 384)
    each = tiny(images, queries)
    for index in range(2):
        torch.testing.assert_close(tiny(images[index : index + 1], queries[index]), each[index : index + 1])


def test_a_grey_image_fills_every_channel() -> None:
    torch.manual_seed(0)
    network = build_segmenter(**{**SIZES["tiny"], "in_channels": 3}).eval()
    grey, queries = torch.randn(1, 1, 4, 4, 4), torch.randn(2, 384)
    assert network.unet.encoder[0][0].conv.weight.shape[1] == 3
    torch.testing.assert_close(network(grey, queries), network(torch.cat((grey, grey, grey), dim=1), queries))


@pytest.mark.parametrize("signed", [True, False])
def test_mask_is_the_product_of_its_embedding_and_the_pixels(signed: bool) -> None:
    network = build_segmenter(**{**SIZES["tiny"], "signed_masks": signed}).eval()
    image, queries = torch.randn(1, 1, 4, 4, 4), torch.randn(2, 384)
    scales, pixels = network.unet(image)
    fine = scales[0].unflatten(4, (2, 2)).unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5, 7))
    pooled = torch.cat((fine, scales[1]), dim=1)
    tokens = network.projection(pooled.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)
    decoded = network.query_decoder(network.query_projection(queries)[None], tokens)
    hidden = gelu(network.mask_embedding[0](decoded))
    embeddings = hidden @ network.mask_embedding[2].weight.T + network.mask_embedding[2].bias
    assert embeddings.shape == (1, 2, 5 if signed else 4)
    if not signed:
        embeddings = gelu(embeddings)
    logits = network(image, queries)
    for query in range(2):
        expected = sum(embeddings[0, query, channel] * pixels[0, channel] for channel in range(4))
        expected = expected + embeddings[0, query, 4] if signed else expected
        torch.testing.assert_close(logits[0, query], expected)


def test_signed_masks_start_rare() -> None:
    torch.manual_seed(0)
    network = build_segmenter(**{**SIZES["tiny"], "signed_masks": True}).eval()
    logits = network(torch.randn(1, 1, 8, 8, 8), torch.randn(4, 384))
    assert (logits < 0).float().mean() > 0.95


def test_sizes_are_names_for_numbers() -> None:
    with torch.device("meta"):
        for size, numbers in SIZES.items():
            named, numbered = build_segmenter(size), build_segmenter(**numbers)
            shapes = {name: tensor.shape for name, tensor in named.state_dict().items()}
            assert shapes == {name: tensor.shape for name, tensor in numbered.state_dict().items()}
        network = build_segmenter(widths=(2, 4, 6), dim=16, query_dim=16, layers=1, heads=2, kernel_size=1)
    assert network.unet.stride == 4
    assert network.unet.encoder[2][1].conv.weight.shape == (6, 6, 1, 1, 1)
    assert isinstance(network.query_projection, torch.nn.Identity)
    assert network.projection[0].weight.shape == (16, 2 + 4 + 6)
    assert network.mask_embedding[2].weight.shape == (2, 16)


def test_low_rank_weights_are_named_as_in_the_whole_network(tiny: Segmenter) -> None:
    assert tiny.low_rank_weights() == {
        "unet.encoder.0.0.conv.weight": False,
        "unet.encoder.1.0.conv.weight": False,
        "unet.decoder.0.0.conv.weight": True,
    }
    assert set(tiny.low_rank_weights()) <= set(dict(tiny.named_parameters()))


def test_refuses_what_is_no_size() -> None:
    with pytest.raises(ValueError, match=r"network size 'huge' is unknown; use one of tiny, toy, .*nano, pro, sat_pro"):
        build_segmenter("huge")
    with pytest.raises(ValueError, match=r"at least two widths, got \[8\]; set network.widths"):
        build_segmenter(widths=(8,))


def test_tokens_may_be_coarser_than_the_coarsest_scale() -> None:
    numbers = {"widths": (2, 4), "query_dim": 8, "dim": 12, "heads": 2, "layers": 1, "feedforward": 8}
    segmenter = build_segmenter(**numbers, token_stride=4).eval()
    assert (segmenter.stride, segmenter.unet.stride) == (4, 2)
    seen = []
    segmenter.projection.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    image = torch.randn(1, 1, 8, 4, 12)
    assert segmenter(image, torch.randn(3, 8)).shape == (1, 3, 8, 4, 12)
    assert seen[0].shape == (1, 2, 1, 3, 6)
    scales, _ = segmenter.unet(image)
    torch.testing.assert_close(seen[0][0, 1, 0, 2, 2:], scales[1][0, :, 2:4, :2, 4:6].mean((1, 2, 3)))
    assert build_segmenter(**numbers).stride == 2
    assert SIZES["nano"]["token_stride"] == 32  # LoRKD-Nano has five scales and pools to SAT's 1/32 all the same
    for wrong in (0, 1, 3):
        with pytest.raises(ValueError, match=f"token_stride {wrong} must be a multiple of 2"):
            build_segmenter(**numbers, token_stride=wrong)
