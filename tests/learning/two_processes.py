"""Runs a function in several real processes of gloo; imported by them too, so it holds no fixtures."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

from lorkd_monailabel.learning.distributed import World, joined

Body = Callable[..., Any]


def described(error: BaseException) -> tuple[str, int]:
    return str(error), 2 if isinstance(error, ValueError) else 1


def enter(rank: int, size: int, port: int, folder: Path, body: Body, arguments: tuple[Any, ...]) -> None:
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size}
    os.environ |= {name: str(value) for name, value in told.items()}
    torch.set_num_threads(1)

    def announce(sentence: str) -> None:
        with (folder / "announced").open("a", encoding="utf-8") as file:
            file.write(f"{rank}: {sentence}\n")

    with joined("cpu", describe=described, announce=announce) as world:
        found = body(world, folder, *arguments)
    torch.save(found, folder / f"{rank}.pt")


def in_processes(body: Body, folder: Path, *arguments: Any, size: int = 2) -> list[Any]:
    """Call ``body(world, folder, *arguments)`` in each process; what each returned."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(enter, args=(size, port, folder, body, arguments), nprocs=size)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def alone(body: Body, folder: Path, *arguments: Any) -> Any:
    """Call ``body`` in this process, as a world of one."""
    folder.mkdir(parents=True, exist_ok=True)
    return body(World(), folder, *arguments)
