"""From a volume and targets to a label map: the whole flow on one page.

volume --canonical grid of the expert's spacing--> image
targets --by department--> newest expert --fuse with its base--> plain network (kept)
image windows x queries --> probabilities --back to the volume's grid--> merged label map
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lorkd_monailabel.experts import Base, Expert, fused_network
from lorkd_monailabel.label_maps import LabelMap, Segment, merge, summary
from lorkd_monailabel.networks.segmenter import Segmenter
from lorkd_monailabel.prompts import Target
from lorkd_monailabel.sliding_window import sliding_window
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.text_encoder import QueryTable
from lorkd_monailabel.volumes import Grid, Volume, canonical_image, resample

OVERLAP = 0.5
NETWORKS_BUDGET_BYTES = 2 * 1024**3

Progress = Callable[[str, int, int], bool]


@dataclass(frozen=True)
class Answer:
    """What became of one target.

    Attributes:
        phrase: as typed.
        structure: canonical name.
        department: whose expert was asked.
        revision: of that expert; None without one.
        value: in the label map; None without an expert.
        voxels: of the structure in the label map.
        ml: its volume.
        status: ``found``, ``absent`` (asked, no voxel) or ``no expert``.
        message: one sentence.
    """

    phrase: str
    structure: str
    department: str
    revision: int | None
    value: int | None
    voxels: int
    ml: float
    status: Literal["found", "absent", "no expert"]
    message: str


@dataclass(frozen=True)
class Prediction:
    """A label map on the volume's own grid, and an answer for every target, in their order."""

    label_map: LabelMap
    answers: tuple[Answer, ...]


class Predictor:
    """Segments volumes with the experts of a store; asks for their newest revisions at every call.

    Args:
        store: of experts and bases.
        device: a torch device.
        queries: table of query vectors for all bases; if not given, the store's for each base's query space.
        networks_budget_bytes: most memory for fused networks that are kept; at least one is.
    """

    def __init__(
        self,
        store: ExpertStore,
        *,
        device: str = "cpu",
        queries: QueryTable | None = None,
        networks_budget_bytes: int = NETWORKS_BUDGET_BYTES,
    ) -> None:
        self.store = store
        self.device = torch.device(device)
        self.queries = queries
        self.networks_budget_bytes = networks_budget_bytes
        self._base: Base | None = None
        self._networks: OrderedDict[tuple[str, int], Fused] = OrderedDict()
        self._lock = threading.Lock()

    def structures(self, department: str) -> tuple[str, ...]:
        """Name what a department's newest expert was trained on; empty without an expert."""
        if self.store.newest(department) is None:
            return ()
        return tuple(self.store.header(department)["structures"])

    def segment(self, volume: Volume, targets: Sequence[Target], *, progress: Progress | None = None) -> Prediction:
        """Segment targets, of any departments, in one volume.

        Args:
            volume: image, grid and modality.
            targets: structures asked for, each once; values 1..N go to those that an expert knows, in their order.
            progress: told the stage, windows done and windows in all; False cancels.

        Raises:
            ValueError: no target has an expert, or the store is damaged.
            Cancelled: ``progress`` said so.
        """
        known = [target for target in targets if target.structure.name in self.structures(target.structure.department)]
        if not known:
            raise ValueError(self._nobody_knows(targets))
        segments = [Segment(value, target.structure) for value, target in enumerate(known, start=1)]
        experts = {name: self.fused(name) for name in dict.fromkeys(target.structure.department for target in known)}
        images: dict[tuple[object, ...], tuple[Tensor, Grid]] = {}

        def probabilities() -> Iterator[tuple[Segment, np.ndarray]]:
            for department, fused in experts.items():
                seen = fused.spacing_mm, fused.intensities
                if seen not in images:
                    images[seen] = canonical_image(volume, *seen, device=str(self.device))
                image, grid = images[seen]
                own = [segment for segment in segments if segment.structure.department == department]
                queries = fused.queries.queries([segment.structure.name for segment in own], volume.modality)
                tell = None if progress is None else partial(progress, department)
                maps = self._masks(fused, image, queries.to(self.device), tell)
                for segment, mask in zip(own, maps, strict=True):
                    yield segment, resample(mask[None], grid, volume.grid, "linear")[0].cpu().numpy()

        label_map = merge(probabilities(), volume.grid)
        revisions = {name: fused.revision for name, fused in experts.items()}
        return Prediction(label_map, tuple(_answers(targets, label_map, revisions)))

    def fused(self, department: str) -> "Fused":
        """Give the plain network of a department's newest expert, fused now or kept from before."""
        revision = self.store.newest(department)
        with self._lock:
            if revision is not None and (department, revision) in self._networks:
                self._networks.move_to_end((department, revision))
                return self._networks[department, revision]
        expert = self.store.load(department, revision)
        fused = self._fuse(expert)
        with self._lock:
            self._networks[department, expert.revision] = fused
            while len(self._networks) > 1 and self._kept_bytes() > self.networks_budget_bytes:
                self._networks.popitem(last=False)
        return fused

    def _fuse(self, expert: Expert) -> "Fused":
        base = self._base
        if base is None or base.sha256 != expert.base_sha256:
            base = self._base = self.store.base(expert.base_sha256)
        queries = self.store.queries(base.query_space) if self.queries is None else self.queries
        if base.query_space != queries.space:
            raise ValueError(
                f"base {expert.base_sha256[:12]} was trained with other query vectors than the table's; "
                "give the query table it was trained with"
            )
        network = fused_network(base, expert).to(self.device)
        return Fused(network, expert.revision, expert.spacing_mm, base.window, base.intensities, queries)

    def _kept_bytes(self) -> int:
        tensors = {p.data_ptr(): p.nbytes for fused in self._networks.values() for p in fused.network.parameters()}
        return sum(tensors.values())

    def _masks(
        self, fused: "Fused", image: Tensor, queries: Tensor, progress: Callable[[int, int], bool] | None
    ) -> Tensor:
        def call(windows: Tensor) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=has_fast_bf16(self.device)):
                logits = fused.network(windows.to(memory_format=torch.channels_last_3d), queries)
            return logits.float().sigmoid()

        stride = fused.network.stride
        sizes = zip(fused.window, image.shape[1:], strict=True)
        window = [-(-min(most, size) // stride) * stride for most, size in sizes]
        return sliding_window(image, call, window=(window[0], window[1], window[2]), overlap=OVERLAP, progress=progress)

    def _nobody_knows(self, targets: Sequence[Target]) -> str:
        if not targets:
            return "there is nothing to segment; name at least one structure"
        wanted = ", ".join(target.structure.name for target in targets)
        have = ", ".join(self.store.departments()) or "no department"
        return f"no expert was trained on {wanted} (experts exist for: {have}); train one, or ask for another structure"


@dataclass(frozen=True)
class Fused:
    """The plain network of one expert, with what its use needs.

    Attributes:
        network: in evaluation mode.
        revision: of the expert.
        spacing_mm: of its grid, along X, Y and Z.
        window: in voxels, along X, Y and Z.
        intensities: of the image; see ``volumes.normalise``.
        queries: table of its query vectors.
    """

    network: Segmenter
    revision: int
    spacing_mm: tuple[float, float, float]
    window: tuple[int, int, int]
    intensities: str
    queries: QueryTable


def has_fast_bf16(device: torch.device) -> bool:
    """Say whether bfloat16 is faster than float32 there: any GPU of ours, and CPUs with instructions for it."""
    if device.type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _answers(targets: Sequence[Target], label_map: LabelMap, revisions: Mapping[str, int]) -> Iterator[Answer]:
    rows = {row["name"]: row for row in summary(label_map)}
    for target in targets:
        name, department = target.structure.name, target.structure.department
        row = rows.get(name)
        if row is None:
            message = f"no expert of {department} was trained on {name}"
            yield Answer(target.phrase, name, department, None, None, 0, 0.0, "no expert", message)
            continue
        where = f"by expert {department}/{revisions[department]:04d}"
        found = row["voxels"] > 0
        yield Answer(
            target.phrase,
            name,
            department,
            revisions[department],
            row["value"],
            row["voxels"],
            row["ml"],
            "found" if found else "absent",
            f"{row['ml']:.1f} ml found {where}" if found else f"not found in this volume {where}",
        )
