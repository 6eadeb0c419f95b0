"""What tests of the tree as a whole share."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MADE_BY_TOOLS = {"__pycache__", "build", "dist", "bin", "lib", "logs", "model"}


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def project_files() -> list[Path]:
    """Every file of the project, relative to its top: what git tracks or would track; without git, what lies there."""
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode == 0:
        files = [Path(name) for name in listing.stdout.split("\0") if name]
    else:
        files = [path.relative_to(ROOT) for path in ROOT.rglob("*")]
        kept = {".ci", ".gitignore", ".pre-commit-config.yaml"}
        files = [
            path
            for path in files
            if not MADE_BY_TOOLS.intersection(path.parts)
            and not path.parts[0].endswith(".egg-info")
            and (not path.parts[0].startswith(".") or path.parts[0] in kept)
        ]
    files = sorted(path for path in files if (ROOT / path).is_file())
    assert Path("pyproject.toml") in files
    return files
