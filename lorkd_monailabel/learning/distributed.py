"""Several processes that train one model together; one process is the case of a world of size 1.

``torchrun`` starts the processes, on one machine or many, and tells each in its environment which it is. All of them
run the same recipe on their share of every batch. What one of them sends does not depend on how many they are: a number
for each department and tensor, and the gradients.

A failure on one ends all, see ``learning.alarm``.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lorkd_monailabel.devices import checked_device
from lorkd_monailabel.learning.alarm import Alarm, Announce, Describe

BUCKET_BYTES = 32 * 1024**2
"""Gradients that travel together: few messages, and little memory beside the gradients themselves."""

TIMEOUT = timedelta(hours=6)
"""The first process may prepare many cases while the others wait; a process that dies is noticed in a second."""

SETTLE_S = 0.2
"""Between the last message and the end of a process; a thread of gloo needs microseconds of it."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees it.

    Attributes:
        rank: number of this process.
        size: number of processes.
        local_rank: number of this process on its machine.
        device: that this process computes on.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this is the process that shows, writes and publishes."""
        return self.rank == 0

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Add up numbers over all processes, in double precision."""
        if self.size == 1:
            return [float(number) for number in numbers]
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Say whether any process says so."""
        return self.sum([flag])[0] > 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.any(False)

    def share(self, state: Any) -> Any:
        """Give every process what the first one has: texts, numbers and tensors in lists and mappings.

        Tensors come on the CPU, one after the other; every process holds the whole state once.
        """
        if self.size == 1:
            return state
        box = [mapped(state, lambda tensor: tensor.to("meta")) if self.first else None]
        dist.broadcast_object_list(box, src=0, device=self.device)
        own = iter(_tensors(state)) if self.first else None

        def received(blank: Tensor) -> Tensor:
            tensor = next(own) if own else torch.empty(blank.shape, dtype=blank.dtype)
            sent = tensor.to(self.device, memory_format=torch.contiguous_format).contiguous()
            dist.broadcast(sent, src=0)
            return tensor if own else sent.cpu()

        return mapped(box[0], received)

    def average_gradients(self, tensors: Iterable[Tensor]) -> None:
        """Make the gradient of each tensor its mean over all processes.

        A tensor without a gradient here counts as zero where another process has one (its department was in that
        one's share of the batch); without a gradient anywhere it stays so, and does not move.
        """
        if self.size == 1:
            return
        tensors = list(tensors)
        there = self.sum([tensor.grad is not None for tensor in tensors])
        for bucket in _buckets([tensor for tensor, count in zip(tensors, there, strict=True) if count]):
            for tensor in bucket:
                if tensor.grad is None:
                    tensor.grad = torch.zeros_like(tensor)
            gradients = [tensor.grad for tensor in bucket if tensor.grad is not None]
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(flat)
            flat /= self.size
            for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
                gradient.copy_(part.view(gradient.shape))

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """Let one process of each machine go before its others, which find in its caches what it did."""
        if self.local_rank:
            self.barrier()
        yield
        if not self.local_rank:
            self.barrier()


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Part tensors into groups of one type and of about ``BUCKET_BYTES``."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in sorted(tensors, key=lambda each: str(each.dtype)):
        if bucket and (size >= BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
    if bucket:
        yield bucket


def mapped(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Copy a state with every tensor changed."""
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, Mapping):
        return {key: mapped(value, change) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(mapped(value, change) for value in state)
    return state


def _tensors(state: Any) -> list[Tensor]:
    found: list[Tensor] = []
    mapped(state, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


@contextmanager
def joined(device: str = "", *, describe: Describe, announce: Announce) -> Iterator[World]:
    """Join the processes that ``torchrun`` started; without it, be a world of one.

    Among several, an exception in the block does not leave it: all processes end, and the first one says why.

    Args:
        device: that the config names; empty chooses cuda where there is one.
        describe: exception -> its sentence and the exit status.
        announce: shows a sentence; called on the first process, from any thread.

    Raises:
        ValueError: in a world of one, a device that is not there.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=torch.device(checked_device(device, option="engine.device")))
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    store = next(dist.rendezvous("env://"))[0]  # type: ignore[attr-defined]
    with Alarm(rank, describe=describe, announce=announce):
        own = process_device(device, local_rank)
        if own.type == "cuda":
            torch.cuda.set_device(own)
        dist.init_process_group(
            "nccl" if own.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=TIMEOUT,
            device_id=own if own.type == "cuda" else None,
        )
        world = World(rank=rank, size=size, local_rank=local_rank, device=own)
        yield world
        world.barrier()
    dist.destroy_process_group()
    # A thread of gloo lets go of what it sent last after its receivers went on, and needs the interpreter for that.
    # Sharded networks keep those threads alive beyond the group, and one that asks an ending interpreter aborts it.
    time.sleep(SETTLE_S)


def process_device(name: str, local_rank: int) -> torch.device:
    """Choose the device of one of several processes: the GPU of its own number, or the CPU.

    Args:
        name: that the config names; empty chooses cuda where there is one.
        local_rank: number of the process on its machine.

    Raises:
        ValueError: one GPU is named for all, or there are fewer than processes.
    """
    device = torch.device(checked_device(name, option="engine.device"))
    if device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise ValueError(f"engine.device is {name!r}, one device for all processes; set it to cuda or cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"process {local_rank} of this machine has no GPU of its own; set --nproc-per-node of torchrun to "
            f"{torch.cuda.device_count()} at most, or engine.device to cpu"
        )
    return torch.device("cuda", local_rank)
