"""Torch devices: which one to use, whether the one that is named is there, and what it is fast at."""

import torch

KINDS = ("cpu", "cuda", "mps")


def checked_device(name: str | None, *, option: str = "--device") -> str:
    """Choose the device: the one that is named, else cuda where there is one, else cpu.

    Args:
        name: as torch writes it, such as cuda:1; None or empty to choose.
        option: how the user names a device, for the message.

    Raises:
        ValueError: torch does not know it, no network can run on it, or it is not there.
    """
    if not name:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is unknown to torch; use {option} cpu, or cuda, or cuda:1") from error
    if device.type not in KINDS:
        raise ValueError(f"device {name!r} is not one of {', '.join(KINDS)}; use {option} cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} is not there ({torch.cuda.device_count()} GPUs); use {option} cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {name!r} is not there (no Apple GPU); use {option} cpu")
    return name


def has_fast_bf16(device: torch.device) -> bool:
    """Say whether bfloat16 is faster than float32 there: any GPU of ours, and CPUs with instructions for it."""
    if device.type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
