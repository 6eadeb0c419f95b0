"""Functions of MONAI Label whose place ours take: its own would harm the store, or can't do what they promise."""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from fastapi import APIRouter, BackgroundTasks, HTTPException, Response, UploadFile


def take_places(logs: APIRouter, model: Any, train: Any) -> None:
    """Put ours in the place of MONAI Label's.

    Args:
        logs: its router.
        model: its module.
        train: its module.
    """
    for route in logs.routes:
        if route.path == "/logs/gpu":  # type: ignore[attr-defined]
            route.endpoint = gpus  # type: ignore[attr-defined]
    model.update_model, model.delete_model = publish_upload, keep
    train_all = train.run

    def run(params: dict[str, Any] | None = None, run_sync: bool | None = False) -> dict[str, Any]:
        """Train what the options name as ``model``, else every task."""
        options = dict(params or {})
        name = options.pop("model", None)
        if name is None:
            trained: dict[str, Any] = train_all(params, run_sync)
            return trained
        if not isinstance(name, str):
            raise ValueError(f"model {str(name)[:60]!r} must be the name of a train task; put it in quotation marks")
        return {name: {"result": train.run_model(name, options, run_sync, True), "detail": None}}

    train.run = run


async def gpus() -> Response:
    """Say what the GPUs do; MONAI Label's fails where there is none."""
    from monailabel.interfaces.utils.app import app_instance

    if shutil.which("nvidia-smi") is None:
        text = f"this server has no nvidia-smi; it computes on {app_instance().predictor.device}"
    else:
        text = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False).stdout
    return Response(text, media_type="text/plain")


def publish_upload(background_tasks: BackgroundTasks, model: str, file: UploadFile) -> dict[str, Any]:
    """Publish an expert's file as the newest revision of its department; MONAI Label would write over the served one.

    Raises:
        HTTPException: 404, there is no such model.
        ValueError: the file holds no expert of that department, or of a base that the store lacks.
    """
    from monailabel.interfaces.utils.app import app_instance

    from lorkd_monailabel.store import load_expert

    app = app_instance()
    department = getattr(app._infers.get(model), "department", None)
    if department is None:
        raise HTTPException(404, f"model {model!r} has no file; experts are uploaded to their department")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "expert.safetensors"
        with path.open("wb") as upload:
            shutil.copyfileobj(file.file, upload)
        try:
            expert = load_expert(path)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), "the upload")) from error
    if expert.department != department.id:
        raise ValueError(f"the upload holds an expert of {expert.department}, not of {department.id}")
    app.store.base(expert.base_sha256)
    return {**app.model_info(model), "revision": app.store.publish(expert)}


def keep(model: str) -> dict[str, Any]:
    """Refuse to delete a model: what is served is chosen, and nothing is lost.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"revisions of {model!r} are never deleted; pin another one, or roll back")
