"""Inference: a MONAI Label request -> Predictor -> a label map's file and what to say about it."""

import atexit
import shutil
import tempfile
import time
import uuid
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from lorkd_monailabel import __version__
from lorkd_monailabel.departments import Department, structure
from lorkd_monailabel.dicom_grids import source_series
from lorkd_monailabel.dicom_seg import Algorithm
from lorkd_monailabel.dicom_seg import write as write_dicom_seg
from lorkd_monailabel.everything import understood
from lorkd_monailabel.jobs import Job, Jobs
from lorkd_monailabel.label_maps import write_label_map
from lorkd_monailabel.layers import write_layers
from lorkd_monailabel.memory import announced, is_out_of_memory
from lorkd_monailabel.predictor import Prediction, Predictor
from lorkd_monailabel.prompts import AUTO, NotUnderstood, Target
from lorkd_monailabel.stopwatch import Stopwatch
from lorkd_monailabel.tasks.last_volume import LastVolume
from lorkd_monailabel.tasks.options import Request, choice, client_id, job_id, text
from lorkd_monailabel.volumes import Volume

LAYERS = ".seg.nrrd"
DICOM_SEG = ".dcm"
EXTENSIONS = (".nii.gz", ".nii", ".nrrd", LAYERS, ".mha", DICOM_SEG)
DTYPES = ("uint8", "uint16")
MODALITIES = (AUTO, "ct", "mri")

Wanted = tuple[list[Target], list[NotUnderstood]]


class SegmentTask(InferTask):
    """What both kinds of task do: read the image, segment when it is their turn, write the label map.

    Args:
        predictor: with the experts.
        jobs: of the server, among which each request takes its turn for the device.
        last: keeps the image of the request before.
        description: for users.
    """

    def __init__(self, predictor: Predictor, jobs: Jobs, last: LastVolume, description: str) -> None:
        super().__init__(InferType.SEGMENTATION, labels={}, dimension=3, description=description)
        self.predictor = predictor
        self.jobs = jobs
        self.last = last

    @abstractmethod
    def wanted(self, request: Request) -> Wanted:
        """Says what the request asks for, and what of it was not understood."""

    def __call__(self, request: Request) -> tuple[str, dict[str, Any]]:
        """Segments the image at the path ``request["image"]``.

        Read from the request: ``text``, ``department``, ``modality``, ``result_extension``, ``result_dtype``, ``job``
        and ``client_id``; lists stand for their first element. A ``.seg.nrrd`` and a ``.dcm`` (DICOM SEG, of an image
        that was a DICOM series) keep overlaps; other files hold one label a voxel.

        Returns:
            A new file in the folder for temporary files, for the caller to remove, and JSON.

        Raises:
            FileNotFoundError: there is no image.
            ValueError: the image or an option is not usable, nothing was understood, no expert knows it, or it can't
                fit into memory.
            Cancelled: the job was cancelled.
        """
        watch, started = Stopwatch(), time.perf_counter()
        extension = choice(request, "result_extension", EXTENSIONS)
        dtype = choice(request, "result_dtype", ("", *DTYPES))
        modality = choice(request, "modality", MODALITIES)
        job, client = job_id(request), client_id(request)
        targets, missed = self.wanted(request)
        if not targets:
            raise ValueError("; ".join(each.message for each in missed[:3]))
        image = Path(request["image"])
        series = source_series(image) if extension == DICOM_SEG else []
        result = _own_folder() / f"lorkd-{uuid.uuid4().hex}{extension}"
        volumes: list[Volume] = []

        def read(own: Job) -> None:
            own.check("read")
            with watch.stage("read"):
                volumes.append(self._volume(image, modality, targets))

        device = str(self.predictor.device)
        try:
            with self.jobs.turn(job, client=client, title=_title(targets), device=device, ahead=read) as own:
                waited = time.perf_counter() - started - watch.seconds["read"]
                seen = volumes[0].modality
                # popped, so that a large volume, which is not kept, is gone before the file is written
                prediction = self._segmented(
                    volumes.pop(), targets, own, keep_overlaps=extension in (LAYERS, DICOM_SEG)
                )
                own.release()
                own.check("write")
                with watch.stage("write"):
                    _write(prediction, result, dtype, series)
        except BaseException:
            result.unlink(missing_ok=True)
            raise
        stages = {"queue": waited, "read": watch.seconds["read"], **prediction.seconds, "write": watch.seconds["write"]}
        about = {
            "job": job,
            **_described(prediction, missed),
            "modality": seen,
            "device": device,
            "seconds": round(time.perf_counter() - started, 3),
            "stages": {name: round(seconds, 4) for name, seconds in stages.items()},
            "fallback": prediction.fallback,
        }
        names = {segment.structure.name: segment.value for segment in prediction.label_map.segments}
        return str(result), {"label_names": names, "lorkd": about}

    def _volume(self, path: Path, modality: str, targets: Sequence[Target]) -> Volume:
        """Reads the image; of what is wrong with it a client is told with its name, not with the server's folders."""
        try:
            return self.last.read(path, modality, lambda: self.predictor.check_memory(announced(path), targets))
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), path.name)) from error

    def _segmented(self, volume: Volume, targets: Sequence[Target], job: Job, *, keep_overlaps: bool) -> Prediction:
        try:
            return self.predictor.segment(volume, targets, progress=job.progress, keep_overlaps=keep_overlaps)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            shape = " x ".join(map(str, volume.grid.shape))
            raise ValueError(
                f"a volume of {shape} voxels and {len(targets)} structures needs more memory than the server has now; "
                "crop it, or name fewer structures"
            ) from error


def _own_folder() -> Path:
    """Gives this process's folder for results, which are removed when they are sent.

    A client that saves an answer under the name of its file, in the temporary folder of the same machine, would save it
    over the very file that is removed.
    """
    folder = _made_for_this_process()
    folder.mkdir(mode=0o700, exist_ok=True)  # what cleans temporary folders up may have taken it for forgotten
    return folder


@cache
def _made_for_this_process() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="lorkd_results_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class DepartmentTask(SegmentTask):
    """Segments with one department's newest expert, whichever that is at each request.

    Args:
        department: whose expert.
        predictor: see ``SegmentTask``.
        jobs: see ``SegmentTask``.
        last: see ``SegmentTask``.
    """

    def __init__(self, department: Department, predictor: Predictor, jobs: Jobs, last: LastVolume) -> None:
        super().__init__(predictor, jobs, last, f"Expert of the department {department.name}")
        self.department = department

    def is_valid(self) -> bool:
        """Whether there is an expert now: one that is published later appears without a restart."""
        return self.predictor.store.newest(self.department.id) is not None

    def get_path(self, validate: bool = True) -> str | None:
        """The file of the served expert, for MONAI Label to give to clients."""
        store = self.predictor.store
        revision = store.served(self.department.id)
        return None if revision is None else str(store.path(self.department.id, revision))

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
        asked = text(request, "text")
        if asked:
            return understood(asked, self.department.id, self.predictor.structures)
        return [Target(name, structure(name)) for name in names], []


class TextTask(SegmentTask):
    """Segments what a text names, with the experts of all departments or of one.

    Args:
        predictor: see ``SegmentTask``.
        jobs: see ``SegmentTask``.
        last: see ``SegmentTask``.
    """

    def __init__(self, predictor: Predictor, jobs: Jobs, last: LastVolume) -> None:
        super().__init__(predictor, jobs, last, "What the text names, such as 'left kidney; liver'")

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
        return understood(text(request, "text"), text(request, "department") or AUTO, self.predictor.structures)


def _title(targets: Sequence[Target]) -> str:
    """What a job is called in the list that all clients see: names of structures, nothing that a client wrote."""
    first = ", ".join(target.structure.name for target in targets[:3])
    return f"{first} and {len(targets) - 3} more" if len(targets) > 3 else first


def _write(prediction: Prediction, path: Path, dtype: str, series: Sequence[Path]) -> None:
    """Writes layers where there are any, else the label map; in uint16 where a client asks for it, or it must be."""
    label_map, layers = prediction.label_map, prediction.layers
    if path.suffix == DICOM_SEG:
        experts = {each.department: each.expert for each in prediction.answers if each.expert}
        write_dicom_seg(layers or label_map, series, path, algorithm=Algorithm("LoRKD", __version__, experts))
    elif layers is not None:
        write_layers(layers.astype(np.uint16) if dtype == "uint16" else layers, path)
    elif dtype == "uint16":
        write_label_map(replace(label_map, array=label_map.array.astype(np.uint16)), path)
    else:
        write_label_map(label_map, path)


def _described(prediction: Prediction, missed: list[NotUnderstood]) -> dict[str, Any]:
    return {
        "answers": [asdict(answer) for answer in prediction.answers],
        "not_understood": [{**asdict(each), "status": "not understood"} for each in missed],
        "overlaps": [asdict(overlap) for overlap in prediction.label_map.overlaps],
    }
