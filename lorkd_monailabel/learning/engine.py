"""How steps are computed, whatever is learned: precision, parts of a batch, compilation, and the want of memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from lorkd_monailabel.learning.distributed import World

BACKEND = "inductor"


class OutOfMemory(Exception):
    """A step did not fit into memory; weights and optimiser are as before it."""


@dataclass(frozen=True)
class Engine:
    """How steps are computed.

    Attributes:
        world: the processes of the run.
        bf16: run networks under bfloat16 autocast.
        accumulate: parts that a process cuts its share of a batch into; they are computed one after the other, so that
            the memory of one is enough. Gradients are those of the whole.
        ema: decay of the average of the trained tensors that takes their place at the end; 0 for none.
        compile: compile the networks.
        shard: some network is spread over the processes, see ``sharding``.
        save_every_s: seconds between checkpoints; 0 saves after every step.

    Raises:
        ValueError: a number out of its range, or settings that exclude each other.
    """

    world: World = field(default_factory=World)
    bf16: bool = True
    accumulate: int = 1
    ema: float = 0.0
    compile: bool = False
    shard: bool = False
    save_every_s: float = 60.0

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.accumulate < 1:
            raise ValueError(f"accumulate {self.accumulate} must be at least 1; set engine.accumulate in the config")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema {self.ema} must be at least 0 and below 1; set engine.ema in the config")
        if self.save_every_s < 0:
            raise ValueError(f"save_every_s {self.save_every_s} is below 0; set engine.save_every_s in the config")
        if self.compile and self.shard:
            raise ValueError("compile and shard exclude each other; set engine.compile or engine.shard to false")

    def share(self, batch_size: int) -> int:
        """Give the samples of a batch that each process computes.

        Raises:
            ValueError: the batch can't be cut into equal parts.
        """
        parts = self.world.size * self.accumulate
        if batch_size < 1 or batch_size % parts:
            raise ValueError(
                f"batch_size {batch_size} can't be shared by {self.world.size} processes in {self.accumulate} equal "
                f"parts each; set batch_size to a multiple of {parts}, or engine.accumulate lower"
            )
        return batch_size // self.world.size


def check_compiler(device: torch.device) -> None:
    """Compile a line, to find out before a run whether this machine can.

    Raises:
        ValueError: it can't.
    """
    try:
        torch.compile(lambda x: x + 1, backend=BACKEND)(torch.zeros(2, device=device))
    except Exception as error:  # what a compiler that is missing or broken raises is of many types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ValueError(
            f"engine.compile is true, but nothing can be compiled here ({reason}); install a C++ compiler (and Triton "
            "for a GPU), or set it to false"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error is a want of memory, of a GPU or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def smaller(engine: Engine, *, batch_size: int, patch: Sequence[int], stride: int) -> str:
    """Advise the next setting that needs less memory: parts of a batch first, for they change nothing else."""
    share = batch_size // engine.world.size
    parts = next((n for n in range(engine.accumulate + 1, share + 1) if share % n == 0), None)
    if parts is not None:
        return f"set engine.accumulate to {parts}"
    sides = [max(stride, math.floor(0.75 * side / stride) * stride) for side in patch]
    if any(side < before for side, before in zip(sides, patch, strict=True)):
        return f"set data.patch to {sides[0] if len(set(sides)) == 1 else sides}"
    return "choose a smaller network, or a machine with more memory"
