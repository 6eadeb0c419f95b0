"""Inference: a MONAI Label request -> Predictor -> a label map's file and what to say about it."""

import tempfile
import time
import uuid
from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from lorkd_monailabel.departments import Department, structure
from lorkd_monailabel.label_maps import LabelMap, write_label_map
from lorkd_monailabel.predictor import Prediction, Predictor
from lorkd_monailabel.prompts import AUTO, NotUnderstood, Target, resolve
from lorkd_monailabel.volumes import Volume, read_volume

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha")
DTYPES = ("uint8", "uint16")
MODALITIES = (AUTO, "ct", "mri")

Request = dict[str, Any]
Wanted = tuple[list[Target], list[NotUnderstood]]


class SegmentTask(InferTask):
    """What both kinds of task do: read the image, segment when it is their turn, write the label map.

    Args:
        predictor: with the experts.
        turn: held while the predictor computes, so that requests share a device one after the other.
        description: for users.
    """

    def __init__(self, predictor: Predictor, turn: AbstractContextManager[Any], description: str) -> None:
        super().__init__(InferType.SEGMENTATION, labels={}, dimension=3, description=description)
        self.predictor = predictor
        self.turn = turn

    @abstractmethod
    def wanted(self, request: Request) -> Wanted:
        """Says what the request asks for, and what of it was not understood."""

    def __call__(self, request: Request) -> tuple[str, dict[str, Any]]:
        """Segments the image at the path ``request["image"]``.

        Read from the request: ``text``, ``department``, ``modality``, ``result_extension``, ``result_dtype``; lists
        stand for their first element.

        Returns:
            A new file in the folder for temporary files, for the caller to remove, and JSON.

        Raises:
            FileNotFoundError: there is no image.
            ValueError: the image or an option is not usable, nothing was understood, or no expert knows it.
        """
        started = time.perf_counter()
        extension = _choice(request, "result_extension", EXTENSIONS)
        dtype = _choice(request, "result_dtype", ("", *DTYPES))
        modality = _choice(request, "modality", MODALITIES)
        targets, missed = self.wanted(request)
        if not targets:
            raise ValueError("; ".join(each.message for each in missed[:3]))
        volume = _volume(Path(request["image"]), modality)
        with self.turn:
            prediction = self.predictor.segment(volume, targets)
        path = Path(tempfile.gettempdir()) / f"lorkd-{uuid.uuid4().hex}{extension}"
        write_label_map(_with_dtype(prediction.label_map, dtype), path)
        about = {
            **_described(prediction, missed),
            "modality": volume.modality,
            "device": str(self.predictor.device),
            "seconds": round(time.perf_counter() - started, 3),
        }
        names = {segment.structure.name: segment.value for segment in prediction.label_map.segments}
        return str(path), {"label_names": names, "lorkd": about}


class DepartmentTask(SegmentTask):
    """Segments with one department's newest expert, whichever that is at each request.

    Args:
        department: whose expert.
        predictor: see ``SegmentTask``.
        turn: see ``SegmentTask``.
    """

    def __init__(self, department: Department, predictor: Predictor, turn: AbstractContextManager[Any]) -> None:
        super().__init__(predictor, turn, f"Expert of the department {department.name}")
        self.department = department

    def is_valid(self) -> bool:
        """Whether there is an expert now: one that is published later appears without a restart."""
        return self.predictor.store.newest(self.department.id) is not None

    def info(self) -> dict[str, Any]:
        """Adds the structures of the newest expert as labels 1..N; where its file is damaged, why there are none."""
        try:
            names = self.predictor.structures(self.department.id)
        except ValueError as error:
            return {**super().info(), "description": str(error)}
        return {**super().info(), "labels": {name: value for value, name in enumerate(names, start=1)}}

    def config(self) -> dict[str, Any]:
        """Options for users: a prompt (empty for all structures) and the modality."""
        return {"text": "", "modality": list(MODALITIES)}

    def wanted(self, request: Request) -> Wanted:
        """What the text asks for; without a text all that the expert was trained on.

        Raises:
            ValueError: there is no expert, or the text is too long.
        """
        names = self.predictor.structures(self.department.id)
        if not names:
            have = ", ".join(self.predictor.store.departments()) or "no department"
            raise ValueError(f"{self.department.id} has no expert (experts exist for: {have}); train one first")
        text = _text(request, "text")
        return resolve(text, self.department.id) if text else ([Target(name, structure(name)) for name in names], [])


class TextTask(SegmentTask):
    """Segments what a text names, with the experts of all departments or of one.

    Args:
        predictor: see ``SegmentTask``.
        turn: see ``SegmentTask``.
    """

    def __init__(self, predictor: Predictor, turn: AbstractContextManager[Any]) -> None:
        super().__init__(predictor, turn, "What the text names, such as 'left kidney; liver'")

    def is_valid(self) -> bool:
        """Always: without any expert, the answer to a request says so."""
        return True

    def config(self) -> dict[str, Any]:
        """Options for users: the prompt, the departments that have an expert now, and the modality."""
        departments = [AUTO, *self.predictor.store.departments()]
        return {"text": "", "department": departments, "modality": list(MODALITIES)}

    def wanted(self, request: Request) -> Wanted:
        """What the text asks for.

        Raises:
            ValueError: the text is missing, blank or too long, or the department is unknown.
        """
        return resolve(_text(request, "text"), _text(request, "department") or AUTO)


def _volume(path: Path, modality: str) -> Volume:
    """Reads the image; of what is wrong with it a client is told with its name, not with the server's folders."""
    try:
        return read_volume(path, modality)
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), path.name)) from error


def _text(request: Request, name: str) -> str:
    """An option of a request; clients that chose nothing send all choices, or none."""
    value = request.get(name)
    if isinstance(value, list):
        value = value[0] if value else None
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} {value!r} must be text; put it in quotation marks")
    return (value or "").strip()


def _choice(request: Request, name: str, known: tuple[str, ...]) -> str:
    """An option that has only the values given; the first of them when it is left out."""
    value = _text(request, name).lower() or known[0]
    if value not in known:
        raise ValueError(f"{name} {value!r} must be one of {', '.join(filter(None, known))}; or leave it out")
    return value


def _with_dtype(label_map: LabelMap, dtype: str) -> LabelMap:
    """The label map in the type that a client asks for; it is uint16 by itself only where uint8 would not hold it."""
    return replace(label_map, array=label_map.array.astype(np.uint16)) if dtype == "uint16" else label_map


def _described(prediction: Prediction, missed: list[NotUnderstood]) -> dict[str, Any]:
    return {
        "answers": [asdict(answer) for answer in prediction.answers],
        "not_understood": [asdict(each) for each in missed],
        "overlaps": [asdict(overlap) for overlap in prediction.label_map.overlaps],
    }
