"""Archives from outside: what a zip may hold before anything in it is read."""

import zipfile
from pathlib import Path, PurePosixPath

SMALL_BYTES = 64 * 1024**2
GROWTH = 4
"""An archive above ``SMALL_BYTES`` may unpack to this many times its size: weights hardly pack."""


def archive_entries(path: Path) -> list[zipfile.ZipInfo]:
    """List the files of a zip, after a look at all of them; none is unpacked.

    Raises:
        ValueError: it is no zip or damaged, two files have one name, one lies outside of it or is a link, or it would
            unpack to much more than it is.
    """
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is no archive that can be read ({error}); give the whole file") from error
    seen: set[str] = set()
    for entry in entries:
        name = entry.filename
        if name.startswith("/") or "\\" in name or ":" in name or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{path} holds {name[:80]!r}, a path out of the archive; give an archive without it")
        if entry.external_attr >> 28 == 0xA:
            raise ValueError(f"{path} holds the link {name[:80]!r}; give an archive of plain files")
        if name.casefold() in seen:  # readers differ in which of the two they take, so one could hide the other
            raise ValueError(f"{path} holds {name[:80]!r} twice; give an archive with each file once")
        seen.add(name.casefold())
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > max(SMALL_BYTES, GROWTH * size):
        raise ValueError(
            f"{path} has {size:,} bytes but would unpack to {unpacked:,}, more than {GROWTH} times as many; "
            "give its folder instead, if you trust it"
        )
    return [entry for entry in entries if not entry.is_dir()]
