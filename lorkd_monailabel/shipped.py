"""What the package ships: weights, and a server's own copy of the store."""

import os
import shutil
import tempfile
from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"
QUERIES = WEIGHTS / "queries.safetensors"
FOUNDATION = WEIGHTS / "foundation.safetensors"
STORE = WEIGHTS / "store"


def store_of_app(app_dir: Path) -> Path:
    """Gives the store in the app directory; the first time, the one that is shipped is copied there, whole or not."""
    folder = app_dir / "model" / "store"
    if folder.exists() or not STORE.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".store-"))
    try:
        shutil.copytree(STORE, draft / "store")
        os.rename(draft / "store", folder)
    except OSError:
        if not folder.is_dir():  # else another process was first
            raise
    finally:
        shutil.rmtree(draft)
    return folder
