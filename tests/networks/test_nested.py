"""Tests of lorkd_monailabel.networks.nested, against singular values of the full matrix."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorkd_monailabel.networks.low_rank import delta_weight, factor_shapes
from lorkd_monailabel.networks.nested import ordered, singular_values, truncated

SHAPES = {
    "1x1x1": (6, 5, 1, 1, 1),
    "1x3x3": (6, 5, 1, 3, 3),
    "3x3x3": (6, 5, 3, 3, 3),
    "2d": (6, 5, 3, 3),
    "1d": (6, 5, 3),
    "linear": (6, 5),
    "few inputs": (16, 1, 3, 3, 3),  # the first layer of grey images: A has 12 rows and 9 columns at rank 4
    "few outputs": (2, 8, 3, 3, 3),  # B has 6 rows and 12 columns at rank 4
}
RANK = 4


def factors(shape: tuple[int, ...], rank: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(each, generator=generator, dtype=torch.float64) for each in factor_shapes(shape, rank))
    return a, b


def in_own_space(shape: tuple[int, ...], delta: Tensor) -> Tensor:
    """The full matrix ``(C_out k0, C_in k_rest)`` of a delta."""
    return delta.reshape(shape[0] * (shape[2] if len(shape) > 2 else 1), -1)


@pytest.mark.parametrize("kind", SHAPES)
def test_ordering_keeps_the_product_and_sorts_what_it_is_made_of(kind: str) -> None:
    shape = SHAPES[kind]
    a, b = factors(shape, RANK)
    before = a.clone(), b.clone()
    new_a, new_b = ordered(a, b)
    assert (new_a.shape, new_b.shape) == (a.shape, b.shape)
    torch.testing.assert_close(new_b @ new_a, b @ a, atol=1e-10, rtol=1e-10)
    rows = min(a.shape)
    torch.testing.assert_close(new_a[:rows] @ new_a[:rows].T, torch.eye(rows, dtype=torch.float64), atol=1e-10, rtol=0)
    assert not new_a[rows:].any()
    values = torch.zeros(len(a), dtype=torch.float64)
    own = torch.linalg.svdvals(b @ a)[: len(a)]
    values[: len(own)] = own
    torch.testing.assert_close(new_b.T @ new_b, torch.diag(values**2), atol=1e-8, rtol=0)
    torch.testing.assert_close(singular_values(a, b), values, atol=1e-10, rtol=0)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


@pytest.mark.parametrize("kind", SHAPES)
def test_error_of_truncation_is_what_the_full_delta_says(kind: str) -> None:
    shape = SHAPES[kind]
    a, b = factors(shape, RANK)
    scale = 1.7
    delta = delta_weight(a, b, shape, scale)
    values = torch.linalg.svdvals(in_own_space(shape, delta))
    for rank in range(1, RANK + 1):
        inner = rank * len(a) // RANK
        smaller = truncated(a, b, inner)
        assert tuple(tensor.shape for tensor in smaller) == factor_shapes(shape, rank)
        error = (delta - delta_weight(*smaller, shape, scale)).norm().item()
        assert error == pytest.approx(math.sqrt((values[inner:] ** 2).sum().item()), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("kind", ["3x3x3", "linear", "few inputs"])
def test_no_other_factors_of_the_rank_come_closer(kind: str) -> None:
    """Alternating least squares from random starts, which knows of no singular values, finds none that is better."""
    shape = SHAPES[kind]
    a, b = factors(shape, RANK)
    product, inner = b @ a, len(a) // RANK
    leading_a, leading_b = truncated(a, b, inner)
    best = (product - leading_b @ leading_a).norm()
    for seed in range(3):
        trial_a = factors(shape, 1, seed + 1)[0]
        for _ in range(40):
            trial_b = torch.linalg.lstsq(trial_a.T, product.T).solution.T
            trial_a = torch.linalg.lstsq(trial_b, product).solution
        found = (product - trial_b @ trial_a).norm()
        assert best <= found * (1 + 1e-9)
        assert found < 1.5 * best  # the search does search


@pytest.mark.parametrize("kind", SHAPES)
def test_truncation_step_by_step_is_truncation_at_once(kind: str) -> None:
    a, b = factors(SHAPES[kind], 8)
    first = len(a) // 8
    once = truncated(a, b, 2 * first)
    twice = truncated(*truncated(a, b, 4 * first), 2 * first)
    for one, other in zip(once, twice, strict=True):  # the factors themselves: signs are fixed
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)
    leading = ordered(a, b)
    assert torch.equal(once[0], leading[0][: 2 * first])


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.lists(st.integers(1, 3), max_size=3),
    st.integers(1, 5),
    st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_error_falls_with_every_component(outputs: int, inputs: int, kernel: list[int], rank: int, seed: int) -> None:
    a, b = factors((outputs, inputs, *kernel), rank, seed)
    product = b @ a
    errors = []
    for inner in range(1, len(a) + 1):
        new_a, new_b = truncated(a, b, inner)
        errors.append((product - new_b @ new_a).norm().item())
    size = product.norm().item()
    assert all(after <= before + 1e-10 * size for before, after in zip([size, *errors], errors, strict=False))
    assert errors[-1] <= 1e-10 * size


def test_a_zero_delta_can_still_be_trained() -> None:
    for kind in ("3x3x3", "few outputs", "few inputs"):
        a, b = factors(SHAPES[kind], RANK)
        for start in ((a, torch.zeros_like(b)), (torch.zeros_like(a), b), (torch.zeros_like(a), torch.zeros_like(b))):
            new_a, new_b = ordered(*start)
            assert not new_b.any()
            assert int(torch.linalg.matrix_rank(new_a)) == min(a.shape)
            new_b.requires_grad_()
            (new_b @ new_a).sum().backward()
            assert new_b.grad is not None
            assert new_b.grad.norm() > 0.1


def test_components_beyond_the_deltas_rank_can_still_be_trained() -> None:
    a, b = factors(SHAPES["linear"], RANK)
    b[:, 1:] = 0  # a delta of rank 1
    new_a, new_b = ordered(a, b)
    torch.testing.assert_close(new_b @ new_a, b @ a, atol=1e-12, rtol=0)
    assert new_b.norm(dim=0)[1:].max() < 1e-12
    torch.testing.assert_close(new_a @ new_a.T, torch.eye(RANK, dtype=torch.float64), atol=1e-10, rtol=0)


def test_signs_do_not_depend_on_those_of_the_factors() -> None:
    a, b = factors(SHAPES["3x3x3"], RANK)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    for other in ((-a, -b), (turn @ a, b @ turn.T)):
        for one, two in zip(ordered(a, b), ordered(*other), strict=True):
            torch.testing.assert_close(one, two, atol=1e-9, rtol=0)
    rows = ordered(a, b)[0]
    assert (rows.amax(dim=1) == rows.abs().amax(dim=1)).all()


def test_half_precision_is_ordered_in_double_and_stays_half() -> None:
    a, b = factors(SHAPES["3x3x3"], RANK)
    for dtype, rounding in ((torch.float16, 1e-3), (torch.bfloat16, 8e-3)):
        half = a.to(dtype), b.to(dtype)
        new = ordered(*half)
        exact = ordered(half[0].double(), half[1].double())
        for one, two in zip(new, exact, strict=True):
            assert one.dtype == dtype
            assert torch.equal(one, two.to(dtype))
        product = half[1].double() @ half[0].double()
        assert (new[1].double() @ new[0].double() - product).norm() < rounding * product.norm()


def test_trained_parameters_are_left_alone() -> None:
    a, b = (torch.nn.Parameter(each) for each in factors(SHAPES["linear"], 2))
    for tensor in (*ordered(a, b), *truncated(a, b, 1), singular_values(a, b)):
        assert not tensor.requires_grad
    small = truncated(a, b, 1)[1]
    assert small.untyped_storage().nbytes() == small.nbytes


def test_what_can_not_be_ordered_is_one_sentence() -> None:
    a, b = factors(SHAPES["linear"], 2)
    for inner in (0, -1, 3):
        with pytest.raises(ValueError, match=rf"^{inner} components of factors that have 2 can't be kept; keep 1 to"):
            truncated(a, b, inner)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"^factors hold values that are not finite.*; use others$"):
            ordered(a, torch.full_like(b, bad))
    huge = torch.full((6, 2), 6e4, dtype=torch.float16), torch.full((2, 5), 6e4, dtype=torch.float16)
    with pytest.raises(
        ValueError, match=r"^singular value 3\.\d+e\+10 exceeds 6\.55e\+04 of torch\.float16; use a wider"
    ):
        ordered(huge[1], huge[0])
