"""The harness: time and peak memory of several ways to do the same, in alternating rounds of one process.

Machines change their pace while they run, so every way runs once in each round and is compared with the floor of its
own round; the order is rotated from round to round. One round more at the start warms up and is dropped. Memory is
measured for itself, best in a process of its own: it needs another setting of the allocator (``hand_back_blocks``).
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lorkd_monailabel.process import hand_back, set_thresholds

MIB = 2**20
LARGE_BLOCK = 2**17
"""glibc's own first thresholds, in bytes; it would raise them step by step to what is freed."""


@dataclass(frozen=True)
class Way:
    """One way to do what is measured.

    Attributes:
        name: in the tables.
        step: what is timed; None for a way that can't run here.
        tensors: whose gradients a step makes; they are dropped before every step, outside of its time.
        note: why it can't run.
    """

    name: str
    step: Callable[[], object] | None
    tensors: Sequence[Tensor] = ()
    note: str = ""


@dataclass(frozen=True)
class Result:
    """What one way took in one case.

    Attributes:
        case: what was computed.
        phase: ``forward``, ``step`` (forward and backward), or another thing done.
        way: its name.
        seconds: median over the rounds; None if it could not run.
        ratio: median over the rounds of its time over the floor's in the same round; None without a floor.
        memory_mib: most memory in use during a step over what was in use before; None where it can't be told.
        memory_ratio: over the floor's.
        operations: floating-point operations of a step, if they were counted.
        rounds: that were timed.
        floor: whether the others are divided by it.
        note: why it could not run.
    """

    case: str
    phase: str
    way: str
    seconds: float | None = None
    ratio: float | None = None
    memory_mib: float | None = None
    memory_ratio: float | None = None
    operations: int | None = None
    rounds: int = 0
    floor: bool = False
    note: str = ""


def measure(
    case: str,
    phase: str,
    ways: Sequence[Way],
    *,
    floor: str | None = None,
    rounds: int = 5,
    device: str = "cpu",
    count: bool = False,
) -> list[Result]:
    """Run all ways in alternating rounds.

    Args:
        case: written into the results.
        phase: written into the results.
        ways: to compare; those without a step come back with their note.
        floor: name of the way that the others are divided by.
        rounds: timed, after one that is not.
        device: a torch device.
        count: count the floating-point operations as well.

    Returns:
        A result for each way, in their order.

    Raises:
        ValueError: no rounds, names that repeat, or a floor that is not among the ways that can run.
    """
    names = [way.name for way in ways]
    if rounds < 1:
        raise ValueError(f"{rounds} rounds measure nothing; ask for at least 1")
    if len(set(names)) != len(names):
        raise ValueError(f"the ways {', '.join(names)} of {case!r} repeat a name; give each its own")
    gc.freeze()  # collecting garbage between steps need not look through what is there already
    try:
        notes = {way.name: way.note if way.step is None else _refusal(way, device) for way in ways}
        able = [way for way in ways if not notes[way.name]]
        if floor is not None and floor not in {way.name for way in able}:
            raise ValueError(f"the floor {floor!r} of {case!r} must be a way that can run; add it to the ways")
        seconds: dict[str, list[float]] = {way.name: [] for way in able}
        for number in range(rounds):
            turn = number % max(1, len(able))
            for way in (*able[turn:], *able[:turn]):
                seconds[way.name].append(_seconds(way, device))
        operations = {way.name: _operations(way) if count else None for way in able}
    finally:
        gc.unfreeze()
    results = []
    for name in names:
        if notes[name]:
            results.append(Result(case, phase, name, note=notes[name]))
            continue
        ratio = None
        if floor is not None:
            ratio = median(own / least for own, least in zip(seconds[name], seconds[floor], strict=True))
        results.append(
            Result(
                case,
                phase,
                name,
                seconds=median(seconds[name]),
                ratio=ratio,
                operations=operations[name],
                rounds=rounds,
                floor=name == floor,
            )
        )
    return results


def with_memory(results: Sequence[Result], ways: Sequence[Way], *, device: str = "cpu") -> list[Result]:
    """Add the memory of each way to the results of one case and phase, after a warm-up; see ``peak_memory``."""
    able = {result.way for result in results if result.seconds is not None}
    gc.freeze()
    try:
        found = {}
        for way in ways:
            if way.name in able:
                _seconds(way, device)
                found[way.name] = peak_memory(way, device)
    finally:
        gc.unfreeze()
    least = next((found[result.way] for result in results if result.floor), None)
    measured = []
    for result in results:
        own = found.get(result.way)
        if own is not None:
            result = replace(result, memory_mib=own / MIB, memory_ratio=own / least if least else None)
        measured.append(result)
    return measured


def peak_memory(way: Way, device: str = "cpu") -> int | None:
    """Measure the most memory in use during a step over what was in use before it, in bytes.

    On a GPU that is what torch had allocated; on Linux the resident memory of this process. glibc keeps freed blocks,
    which would hide what a step needs, or count what it no longer needs: all are handed back first.

    Returns:
        Bytes; None where the system does not tell.
    """
    _forget(way)
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _run(way)
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
        _forget(way)
        return peak - before
    gc.collect()
    hand_back_blocks()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew from here
        resident = _status_bytes("VmRSS")
        _run(way)
        return max(0, _status_bytes("VmHWM") - resident)
    except OSError:
        return None
    finally:
        _forget(way)


def hand_back_blocks() -> None:
    """Make glibc give freed blocks back to the system: all that it keeps, and large ones at once from now on.

    Large ones are then exactly what is in use, if this is called before any is made. It makes a process slower.
    """
    set_thresholds(trim_bytes=LARGE_BLOCK, mmap_bytes=LARGE_BLOCK)
    hand_back()


def _refusal(way: Way, device: str) -> str:
    """Run a way once, which warms it up; say why it can't run, or nothing."""
    try:
        _seconds(way, device)
    except torch.OutOfMemoryError:
        _forget(way)
        torch.cuda.empty_cache()
        return "out of memory"
    return ""


def _seconds(way: Way, device: str) -> float:
    _forget(way)
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    _run(way)
    if cuda:
        torch.cuda.synchronize(device)
    took = time.perf_counter() - began
    _forget(way)
    return took


def _operations(way: Way) -> int:
    _forget(way)
    with FlopCounterMode(display=False) as counter:
        _run(way)
    _forget(way)
    return counter.get_total_flops()


def _run(way: Way) -> None:
    assert way.step is not None
    way.step()


def _forget(way: Way) -> None:
    for tensor in way.tensors:
        tensor.grad = None


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    (line,) = (line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
