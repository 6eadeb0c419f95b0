"""Demonstration images: one CT and one MR volume with label maps, out of TotalSegmentator's source package.

The label maps are the output of TotalSegmentator's model (Apache-2.0), not drawn by hand: what agrees with them agrees
with TotalSegmentator.
"""

import hashlib
import json
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
import textwrap
from dataclasses import astuple, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

REQUIREMENT = "totalsegmentator==2.18.0"
SDIST_SHA256 = "5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03"
MEMBERS = "totalsegmentator-2.18.0/tests/reference_files"
# Name in the folder -> (name in the source package, SHA-256), in the order of DemoData's fields.
FILES = {
    "ct.nii.gz": ("example_ct.nii.gz", "dbd3ae6d614d1d7ef3a46925c30c70038ed52da6b37fdd6afdc7b9b71387e3e1"),
    "ct_labels.nii.gz": (
        "example_seg_fast_force_split.nii.gz",
        "e8097758e56e73099075b6caaebce23ef11bc6fad66a4ec3753b9406846558c7",
    ),
    "mr.nii.gz": ("example_mr_sm.nii.gz", "209b46efaff595dd54a9332872e17a722b62654bbb68dbd89acd5090701bbd4f"),
    "mr_labels.nii.gz": ("example_seg_mr.nii.gz", "e73a5ee12962aa2bb2f3e43ab58dfc67990c5a7ef2dcb426a1bf5e5982b9587f"),
}
DOWNLOAD_SECONDS = 900

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DemoData:
    """Paths of the demonstration images; each label map has the grid of its image.

    Attributes:
        ct: lower thorax to pelvis, ``(122, 101, 112)`` at 3 mm.
        ct_labels: 61 structures of it.
        mr: abdomen, ``(117, 91, 20)`` at 3 mm.
        mr_labels: 23 structures of it.
    """

    ct: Path
    ct_labels: Path
    mr: Path
    mr_labels: Path


def fetch_demo(folder: str | Path, *, sdist: str | Path | None = None) -> DemoData:
    """Put the demonstration images into ``folder``, unless they are there already.

    Args:
        folder: made if it is missing; nothing is written into it before every file has proved to be the right one.
        sdist: TotalSegmentator's source package where pip has no network; without it pip downloads it (38 MB).

    Raises:
        FileNotFoundError: ``sdist`` is not a file.
        ValueError: the download failed, or a file is not the expected one.
    """
    folder = Path(folder).absolute()
    data = DemoData(*(folder / name for name in FILES))
    if all((folder / name).is_file() and _sha256(folder / name) == pin for name, (_, pin) in FILES.items()):
        return data
    if sdist is not None:
        contents = _read(Path(sdist))
    else:
        with tempfile.TemporaryDirectory() as downloads:
            contents = _read(_download(Path(downloads)))
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        _write(folder / name, content)
    return data


def demo_labels(image: Literal["ct", "mr"]) -> dict[int, str]:
    """Value in the label map of ``image`` -> name of the structure."""
    return {entry["values"][0]: name for name, entry in _structures()[image].items()}


def demo_cases(folder: str | Path) -> list[dict[str, Any]]:
    """Two records for an index of cases, CT and MR; paths are absolute.

    Raises:
        FileNotFoundError: ``folder`` lacks an image.
    """
    data = DemoData(*(Path(folder).absolute() / name for name in FILES))
    for path in astuple(data):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; fetch the demonstration images into {folder} first")
    structures = _structures()
    return [
        {
            "image": str(image),
            "label": str(label),
            "modality": modality,
            "source": source,
            "subject": subject,
            "split": "demo",
            "structures": structures[key],
        }
        for image, label, modality, source, subject, key in (
            (data.ct, data.ct_labels, "ct", "ts_example", "example_ct", "ct"),
            (data.mr, data.mr_labels, "mri", "ts_example_mr", "example_mr_sm", "mr"),
        )
    ]


def _structures() -> dict[str, dict[str, Any]]:
    text = resources.files("lorkd_monailabel").joinpath("demo_data.json").read_text(encoding="utf-8")
    structures: dict[str, dict[str, Any]] = json.loads(text)
    return structures


def _download(folder: Path) -> Path:
    """Download the source package; pip compares its hash before it runs anything of it, and installs nothing."""
    logger.info("downloading %s (38 MB)", REQUIREMENT)
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{SDIST_SHA256}\n", encoding="utf-8")
    way_out = "check the network and pip's index, or give the path of its source archive"
    command = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check", "download"]
    command += ["--no-deps", "--no-binary", "totalsegmentator", "--require-hashes"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"pip did not fetch {REQUIREMENT} within {DOWNLOAD_SECONDS} s; {way_out}") from error
    archives = list(folder.glob("*.tar.gz"))
    if done.returncode != 0 or len(archives) != 1:
        lines = done.stderr.strip().splitlines()
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        reason = textwrap.shorten((errors or lines[-1:] or ["no message"])[0], 160, placeholder=" …").rstrip(".")
        raise ValueError(f"pip cannot fetch {REQUIREMENT} ({reason}); {way_out}")
    return archives[0]


def _read(sdist: Path) -> dict[str, bytes]:
    """Read the four files out of the source package, each against its hash: name in the folder -> content."""
    if not sdist.is_file():
        raise FileNotFoundError(f"source archive {sdist} is not a file; give the path of {REQUIREMENT}'s .tar.gz")
    found = _sha256(sdist)
    if found != SDIST_SHA256:
        raise ValueError(
            f"source archive {sdist} has SHA-256 {found}, but {REQUIREMENT}'s has {SDIST_SHA256}; download it again"
        )
    contents = {}
    with tarfile.open(sdist, mode="r:gz") as archive:
        members = {member.name: member for member in archive if member.isfile()}
        for name, (original, pin) in FILES.items():
            member = members.get(f"{MEMBERS}/{original}")
            stream = archive.extractfile(member) if member else None
            content = stream.read() if stream else b""
            if hashlib.sha256(content).hexdigest() != pin:
                raise ValueError(f"{original} in {sdist} is not the expected file; download {REQUIREMENT} again")
            contents[name] = content
    return contents


def _write(path: Path, content: bytes) -> None:
    """Write all of the file or none of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
