"""What MONAI Label executes, by its path: it looks here for the app's class.

The folder above goes first on the import path, so that a server and the processes it starts run the very tree that was
named with ``--app``, from any folder, installed or not.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lorkd_monailabel.compat import allow_pydicom_3

allow_pydicom_3()

from lorkd_monailabel.app import LoRKDApp  # noqa: E402, F401
