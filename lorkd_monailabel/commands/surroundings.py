"""What ``lorkd doctor`` says of everything around the store: memory, disk, GPU, studies, port, tokens."""

import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lorkd_monailabel.commands.serve import check_port
from lorkd_monailabel.front_door.tokens import TokenFile

GIB = 1024**3
LEAST_MEMORY = 3 * GIB
"""The server takes 0.7 GiB, a training process as much again, and a CT of 512 x 512 x 400 another in work."""

LEAST_DISK = 5 * GIB
IMAGES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
_MEMORY = Path("/proc/meminfo")


class Finding(NamedTuple):
    """One line: whether all is well, and what was found, with the way out where it is not."""

    ok: bool
    text: str


def about_memory() -> Iterator[Finding]:
    """Tell how much memory is available, where the system says it."""
    if not _MEMORY.exists():
        return
    lines = dict(line.split(":", 1) for line in _MEMORY.read_text(encoding="utf-8").splitlines() if ":" in line)
    if "MemAvailable" not in lines:
        return
    free = int(lines["MemAvailable"].split()[0]) * 1024
    text = f"memory: {free / GIB:.1f} GiB available"
    way_out = f"; the server wants {LEAST_MEMORY / GIB:.0f} GiB for large images, end other programs"
    yield Finding(free >= LEAST_MEMORY, text if free >= LEAST_MEMORY else text + way_out)


def about_disk(store: Path) -> Iterator[Finding]:
    """Tell how much room the store and the folder of uploads have."""
    for what, folder in (("store", store), ("uploads", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        text = f"disk of the {what} ({folder}): {free / GIB:.1f} GiB free"
        way_out = f"; make room for {LEAST_DISK / GIB:.0f} GiB"
        yield Finding(free >= LEAST_DISK, text if free >= LEAST_DISK else text + way_out)


def about_gpu(*, usable: bool) -> Iterator[Finding]:
    """Tell whether there is a GPU that torch can't use."""
    if not usable and shutil.which("nvidia-smi"):
        yield Finding(
            False,
            "a driver of NVIDIA is there, but torch can't use a GPU; install a CUDA build of torch, such as "
            "LORKD_TORCH='torch==2.13.0+cu128' ./setup",
        )


def about_studies(studies: str) -> Iterator[Finding]:
    """Tell whether the studies can be read, and labels be written there."""
    if studies.startswith(("http://", "https://")):
        yield _about_dicomweb(studies)
        return
    folder = Path(studies)
    if not folder.is_dir():
        yield Finding(False, f"studies {studies} is not a folder that exists; make it, or check the path")
    elif not os.access(folder, os.R_OK | os.X_OK):
        yield Finding(False, f"studies {studies} can't be read by this user; change its rights")
    elif not os.access(folder, os.W_OK):
        yield Finding(False, f"studies {studies} can't be written by this user, so no label can be saved; chmod it")
    else:
        images = sum(path.name.lower().endswith(IMAGES) for path in folder.iterdir())
        yield Finding(True, f"studies {studies}: {images} image files")


def _about_dicomweb(address: str) -> Finding:
    try:
        request = urllib.request.Request(f"{address.rstrip('/')}/studies?limit=1")
        request.add_header("Accept", "application/dicom+json")
        with urllib.request.urlopen(request, timeout=10):
            return Finding(True, f"studies {address}: the DICOMweb server answers")
    except urllib.error.HTTPError as error:
        way_out = "check MONAI_LABEL_DICOMWEB_USERNAME" if error.code in (401, 403) else "check the address"
        return Finding(error.code == 401, f"studies {address}: the server answers {error.code}; {way_out}")
    except (OSError, ValueError) as error:
        return Finding(False, f"studies {address} can't be reached ({error}); check the address and the server")


def about_port(host: str, port: int) -> Iterator[Finding]:
    """Tell whether the server could listen."""
    try:
        check_port(host, port)
        yield Finding(True, f"port {port} of {host} is free")
    except ValueError as error:
        yield Finding(False, str(error))


def about_tokens(path: Path) -> Iterator[Finding]:
    """Tell who has a token."""
    try:
        holders = TokenFile(path).holders()
    except ValueError as error:
        yield Finding(False, str(error))
        return
    count = Counter(each.role.name.lower() for each in holders)
    if not holders:
        yield Finding(False, f"tokens {path} has nobody; run: lorkd tokens add NAME --role annotator --tokens {path}")
    else:
        yield Finding(True, f"tokens {path}: {', '.join(f'{number} {role}' for role, number in sorted(count.items()))}")
