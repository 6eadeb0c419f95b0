"""Text encoders: the packaged MiniLM, SAT's own, and any as ONNX. Each gives a function and a name with SHA-256.

Only the maker of a query table needs one.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

Encoder = Callable[[Sequence[str]], Tensor]
"""Texts to one vector each, ``(N, D)``."""
