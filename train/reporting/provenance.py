"""Where a run comes from: its settings, the revision of this code, the versions of what it stands on, the machine."""

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import torch

import lorkd_monailabel
from lorkd_monailabel.json_files import write_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

GIT_SECONDS = 10.0
PACKAGES = ("monai", "numpy", "nibabel")
CHECKOUT = Path(lorkd_monailabel.__file__).resolve().parents[1]


def write_provenance(
    folder: Path, config: "DataclassInstance", seed: int, *, device: str | torch.device = "cpu"
) -> dict[str, Any]:
    """Write ``run.json``, whole or not at all; return what stands in it, see ``provenance``."""
    told = provenance(config, seed, device=device)
    write_json(folder / "run.json", told)
    return told


def provenance(config: "DataclassInstance", seed: int, *, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Tell everything that another run would have to repeat.

    Args:
        config: resolved; what it tells of the machine's folders is left out, see ``portable``.
        seed: of everything drawn.
        device: that the run computes on.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "git": git_state(CHECKOUT),
        "versions": versions(),
        "device": device_name(device),
        "cores": cores(),
        "world_size": torch.distributed.get_world_size() if _distributed() else 1,
        "config": portable(config),
    }


def portable(value: Any) -> Any:
    """Give settings without the folders of a machine: of a path that is absolute or leads outside, its last name."""
    if is_dataclass(value) and not isinstance(value, type):
        return portable(asdict(value))
    if isinstance(value, Mapping):
        return {key: portable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [portable(each) for each in value]
    if isinstance(value, str | Path) and _leads_outside(str(value)):
        return PureWindowsPath(value).name
    return str(value) if isinstance(value, Path) else value


def licensed(*licences: str) -> dict[str, str]:
    """Give the entry of weights that stand under several licences; none where nothing is stated."""
    stated = "; ".join(dict.fromkeys(each for each in licences if each))
    return {"licence": stated} if stated else {}


def _leads_outside(text: str) -> bool:
    paths = PurePosixPath(text), PureWindowsPath(text)
    return any(path.is_absolute() or ".." in path.parts for path in paths) or text.startswith("~")


def git_state(checkout: Path, *, seconds: float = GIT_SECONDS) -> dict[str, Any] | None:
    """Give ``revision`` (a hash) and ``dirty`` (whether files differ from it) of a checkout.

    None where the folder is not the top of a checkout, for example an installed package, and where git is missing or
    does not answer.

    Args:
        checkout: top of the working tree.
        seconds: to wait for git.
    """
    top = _git(checkout, seconds, "rev-parse", "--show-toplevel", "HEAD")
    status = _git(checkout, seconds, "status", "--porcelain") if top is not None else None
    if top is None or status is None:
        return None
    folder, revision = top.splitlines()
    return {"revision": revision, "dirty": bool(status)} if Path(folder).resolve() == checkout.resolve() else None


def _git(folder: Path, seconds: float, *arguments: str) -> str | None:
    # A hook of git runs us with variables that point to its own repository; and a question takes no lock.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            env={**environment, "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def versions() -> dict[str, str]:
    """Give the versions of what the numbers of a run depend on; a package that is not installed is left out."""
    found = {
        "lorkd_monailabel": lorkd_monailabel.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def device_name(device: str | torch.device = "cpu") -> str:
    """Name a device as its maker does."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
