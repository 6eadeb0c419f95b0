"""Low-rank factors in the order of what they add, so that the leading ones are the best of a smaller rank.

Everything here works on the product ``B A`` in the factors' own space, ``(C_out * k0, C_in * k_rest)`` (see
``low_rank.factor_shapes``). A delta is that matrix reshaped and scaled, so norms of errors are the delta's own.
"""

import torch
from torch import Tensor


def ordered(lora_a: Tensor, lora_b: Tensor) -> tuple[Tensor, Tensor]:
    """Order factors by the singular values of their product, largest first; the product stays.

    With ``B A = U S V^T``, ``B`` becomes ``U S`` and ``A`` becomes ``V^T``. Signs are fixed: the entry of largest
    magnitude of each row of ``A`` is positive.

    Args:
        lora_a: ``(inner, columns)``.
        lora_b: ``(rows, inner)``; ``inner`` may exceed both sides.

    Returns:
        ``lora_a`` with orthonormal rows (as many as it has columns; those beyond are zero) and ``lora_b`` with
        orthogonal columns, of the same shapes and types; computed in float64.

    Raises:
        ValueError: values that are not finite, or a product too large for the type of ``lora_b``.
    """
    a_basis, b_basis, core = _core(lora_a, lora_b)
    left, values, right = torch.linalg.svd(core)
    count = len(values)
    limit = torch.finfo(lora_b.dtype).max
    if count and values[0] > limit:
        raise ValueError(f"singular value {values[0]:.3g} exceeds {limit:.3g} of {lora_b.dtype}; use a wider type")
    # The values go into B alone. A keeps unit rows even where the product is zero or of lower rank: B's zero columns
    # then still get a gradient (dW A^T), as in a new expert; with both zero, or both small, training would stand still.
    # Rows beyond A's columns can be zero: those before span the whole space already.
    rows = right @ a_basis.T
    columns = b_basis @ left[:, :count] * values
    signs = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)).sign()
    a, b = torch.zeros_like(lora_a), torch.zeros_like(lora_b)
    a[: len(rows)] = rows * signs
    b[:, :count] = columns * signs[:count, 0]
    return a, b


def truncated(lora_a: Tensor, lora_b: Tensor, inner: int) -> tuple[Tensor, Tensor]:
    """Keep the leading components: the best approximation of ``B A`` by so few in the Frobenius norm (Eckart-Young).

    The error is the root of the sum of squares of the ``singular_values`` that go. A rank of ``r`` has ``r * k0``
    components, so this is also the best of all experts of rank ``r`` for the layer.

    Args:
        lora_a: ``(inner before, columns)``.
        lora_b: ``(rows, inner before)``.
        inner: components to keep.

    Returns:
        ``(inner, columns)`` and ``(rows, inner)``, copies, ``ordered``.

    Raises:
        ValueError: as many components are not there; or see ``ordered``.
    """
    if not 1 <= inner <= len(lora_a):
        raise ValueError(f"{inner} components of factors that have {len(lora_a)} can't be kept; keep 1 to that many")
    a, b = ordered(lora_a, lora_b)
    return a[:inner].clone(), b[:, :inner].clone()


def singular_values(lora_a: Tensor, lora_b: Tensor) -> Tensor:
    """Give the singular values of ``B A`` in falling order, ``(inner,)`` in float64, zeros where it has fewer.

    Raises:
        ValueError: values that are not finite.
    """
    values = torch.linalg.svdvals(_core(lora_a, lora_b)[2])
    return torch.nn.functional.pad(values, (0, len(lora_a) - len(values)))


def _core(lora_a: Tensor, lora_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give orthonormal bases of A's rows and B's columns, and ``B A`` between them: at most ``inner`` square."""
    a, b = lora_a.detach().double(), lora_b.detach().double()
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("factors hold values that are not finite, which can't be ordered; use others")
    a_basis, a_core = torch.linalg.qr(a.T)
    b_basis, b_core = torch.linalg.qr(b)
    return a_basis, b_basis, b_core @ a_core.T
