"""The stand-in for what pydicom 3 took away; each case in a process of its own, with a pydicom of ours."""

import subprocess
import sys

import pytest

ASK = """
from lorkd_monailabel.compat import allow_pydicom_3
allow_pydicom_3()
allow_pydicom_3()
from pydicom._storage_sopclass_uids import SegmentationStorage
print(SegmentationStorage)
"""


def ask(folder, root) -> str:
    """What the module that pydicom-seg imports says, with the pydicom of a folder."""
    path = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(root)!r}]"
    command = [sys.executable, "-S", "-c", path + ASK]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def pydicom(tmp_path):
    """The folder of a pydicom with a class id."""
    folder = tmp_path / "pydicom"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "uid.py").write_text("SegmentationStorage = 'of pydicom 3'")
    return folder


def test_stands_in_where_pydicom_has_lost_it(pydicom, root):
    assert ask(pydicom.parent, root) == "of pydicom 3"


def test_leaves_an_older_pydicom_alone(pydicom, root):
    (pydicom / "_storage_sopclass_uids.py").write_text("SegmentationStorage = 'of pydicom 2'")
    assert ask(pydicom.parent, root) == "of pydicom 2"
