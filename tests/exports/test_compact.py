"""Tests of lorkd_monailabel.exports.compact: values by hand, and the network that runs on packed weights."""

import pytest
import torch

from lorkd_monailabel.experts import plain_network
from lorkd_monailabel.exports.compact import CompactSegmenter, packed, unpacked


def test_int8_by_hand() -> None:
    weights = {"a.weight": torch.tensor([[1.27, -0.634], [0.0, 0.0], [-254.0, 3.0]]), "a.bias": torch.tensor([0.3])}
    found = packed(weights, "int8")
    assert found["a.weight"].dtype == torch.int8
    assert found["a.weight"].tolist() == [[127, -63], [0, 0], [-127, 2]]
    torch.testing.assert_close(found["a.weight.scale"], torch.tensor([[0.01], [1.0], [2.0]]))
    assert set(found) == {"a.weight", "a.weight.scale", "a.bias"}
    back = unpacked(found)
    torch.testing.assert_close(back["a.weight"], torch.tensor([[1.27, -0.63], [0.0, 0.0], [-254.0, 4.0]]))
    assert torch.equal(back["a.bias"], weights["a.bias"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_network_on_packed_weights_is_that_of_unpacked_ones(dtype: str, tiny_base) -> None:
    tensors = packed(tiny_base.weights, dtype)
    network = CompactSegmenter(tiny_base.network, tensors).eval()
    assert {each.dtype for each in network.state_dict().values()} == {each.dtype for each in tensors.values()}
    assert not list(network.parameters())
    image, queries = torch.randn(1, 1, 4, 6, 4), torch.randn(2, 384)
    expected = plain_network(tiny_base.network, unpacked(tensors))(image, queries)
    for _ in range(2):  # weights that are lent to one run must not be there in the next
        assert torch.equal(network(image, queries), expected)


def test_what_can_not_be() -> None:
    with pytest.raises(ValueError, match="dtype 'int4' is unknown; use one of float32, bfloat16, float16, int8"):
        packed({}, "int4")
    with pytest.raises(ValueError, match="weight w reaches 70000, beyond float16; export it as float32 or bfloat16"):
        packed({"w": torch.tensor([7e4])}, "float16")
    for dtype in ("float32", "int8"):
        with pytest.raises(ValueError, match="weight w holds NaN or infinity"):
            packed({"w": torch.tensor([[float("nan")]])}, dtype)
