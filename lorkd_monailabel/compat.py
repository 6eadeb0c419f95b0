"""What MONAI Label 0.8.5 needs before its first import where pydicom 3 is installed."""

import importlib.util
import sys
from types import ModuleType

_LOST = "pydicom._storage_sopclass_uids"


def allow_pydicom_3() -> None:
    """Gives pydicom-seg 0.4.1 the one name that it takes from a private module of pydicom, gone since pydicom 3.

    MONAI Label imports pydicom-seg with its first endpoint, though it uses it for DICOMweb stores only. Without effect
    where pydicom is older than 3 or absent, and when called again.
    """
    if _LOST in sys.modules or importlib.util.find_spec("pydicom") is None or importlib.util.find_spec(_LOST):
        return
    from pydicom.uid import SegmentationStorage

    module = ModuleType(_LOST, "Stands in for a module that pydicom 3 no longer has.")
    module.__dict__["SegmentationStorage"] = SegmentationStorage
    sys.modules[_LOST] = module
