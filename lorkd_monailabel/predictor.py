"""From a volume and targets to a label map: the whole flow on one page.

volume --canonical grid of the expert's spacing--> image
targets --by department--> served expert --fuse with its base--> plain network (kept)
image windows x queries --> probabilities --back to the volume's grid--> merged label map
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from lorkd_monailabel.answers import Answer, answers
from lorkd_monailabel.experts import Base, Expert, fused_network
from lorkd_monailabel.label_maps import LabelMap, Merging, Segment
from lorkd_monailabel.layers import Layering, Layers
from lorkd_monailabel.masks import brought_back, network_masks
from lorkd_monailabel.memory import Extent, check_memory, is_out_of_memory
from lorkd_monailabel.networks.segmenter import Segmenter
from lorkd_monailabel.prompts import Target
from lorkd_monailabel.sliding_window import Cancelled
from lorkd_monailabel.stopwatch import Stopwatch
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.text_encoder import QueryTable
from lorkd_monailabel.volumes import Grid, Volume, canonical_image

OVERLAP = 0.5
NETWORKS_BUDGET_BYTES = 2 * 1024**3

Progress = Callable[[str, int, int], bool]


@dataclass(frozen=True)
class Prediction:
    """What a volume was segmented into, on its own grid.

    Attributes:
        label_map: all structures in one array.
        answers: one for every target, in their order.
        layers: the same with overlaps kept, if that was asked for.
        fallback: one sentence on where memory ran out and what was done; None where it did not.
        seconds: by stage: prepare, windows and merge.
    """

    label_map: LabelMap
    answers: tuple[Answer, ...]
    layers: Layers | None = None
    fallback: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class Predictor:
    """Segments volumes with the experts of a store; asks for the revisions to serve at every call.

    Args:
        store: of experts and bases.
        device: a torch device.
        queries: table of query vectors for all bases; if not given, the store's for each base's query space.
        networks_budget_bytes: most memory for fused networks that are kept; at least one is.
        overlap: share of a window that its neighbour covers too; fewer windows are faster and less exact.
    """

    def __init__(
        self,
        store: ExpertStore,
        *,
        device: str = "cpu",
        queries: QueryTable | None = None,
        networks_budget_bytes: int = NETWORKS_BUDGET_BYTES,
        overlap: float = OVERLAP,
    ) -> None:
        self.store = store
        self.device = torch.device(device)
        self.queries = queries
        self.networks_budget_bytes = networks_budget_bytes
        self.overlap = overlap
        self._base: Base | None = None
        self._networks: OrderedDict[tuple[str, int], Fused] = OrderedDict()
        self._lock = threading.Lock()

    def structures(self, department: str, revision: int | None = None) -> tuple[str, ...]:
        """Name what a department's expert, the served one if none is named, was trained on; empty without one."""
        revision = self.store.served(department) if revision is None else revision
        if revision is None:
            return ()
        return tuple(self.store.header(department, revision)["structures"])

    def check_memory(self, extent: Extent | None, targets: Sequence[Target]) -> None:
        """Refuse a volume that can't fit into main memory, before it is read.

        Args:
            extent: of the volume, where it is known.
            targets: structures that will be asked for.

        Raises:
            ValueError: it can't fit.
        """
        asked = [target.structure for target in targets] if self.device.type == "cpu" else []
        served = {name: self.store.served(name) for name in dict.fromkeys(each.department for each in asked)}
        headers = [self.store.header(name, revision) for name, revision in served.items() if revision]
        names = {each.name for each in asked}
        known = [(header["spacing_mm"], len(names.intersection(header["structures"]))) for header in headers]
        check_memory(extent, [(spacing_mm, count) for spacing_mm, count in known if count])

    def segment(
        self,
        volume: Volume,
        targets: Sequence[Target],
        *,
        progress: Progress | None = None,
        keep_overlaps: bool = False,
    ) -> Prediction:
        """Segment targets, of any departments, in one volume.

        Args:
            volume: image, grid and modality.
            targets: structures asked for, each once; values 1..N go to those that an expert knows, in their order.
            progress: told the stage (the department whose windows are computed, then ``merge``), steps done and steps
                in all; False cancels.
            keep_overlaps: give layers too, and answer by them.

        Raises:
            ValueError: no target has an expert, the store is damaged, or no memory is enough.
            Cancelled: ``progress`` said so.
        """
        watch, tell = Stopwatch(), progress or _go_on
        with watch.stage("prepare"):
            # once, as another revision may be published while this runs
            served = {name: self.store.served(name) for name in {target.structure.department for target in targets}}
            revisions = {name: revision for name, revision in served.items() if revision is not None}
            names = {name: self.structures(name, revision) for name, revision in revisions.items()}
            known = [each for each in targets if each.structure.name in names.get(each.structure.department, ())]
            if not known:
                raise ValueError(self._nobody_knows(targets))
            asked = dict.fromkeys(target.structure.department for target in known)
            experts = {name: self.fused(name, revisions[name]) for name in asked}
        segments = [Segment(value, target.structure) for value, target in enumerate(known, start=1)]
        merging, layering = Merging(volume.grid), Layering(volume.grid) if keep_overlaps else None
        images: dict[tuple[object, ...], tuple[Tensor, Grid]] = {}
        fallbacks: list[str] = []
        for department, fused in experts.items():
            own = [segment for segment in segments if segment.structure.department == department]
            with watch.stage("prepare"):
                seen = fused.spacing_mm, fused.intensities
                if seen not in images:
                    images[seen] = self._canonical_image(volume, *seen)
                image, grid = images[seen]
                queries = fused.queries.queries([segment.structure.name for segment in own], volume.modality)
            with watch.stage("windows"):
                masks, fallback = network_masks(
                    fused.network,
                    image,
                    queries,
                    device=self.device,
                    window=fused.window,
                    overlap=self.overlap,
                    progress=partial(tell, department),
                )
                fallbacks += [f"{department}: {fallback}"] if fallback else []
                if masks.is_cuda:
                    torch.cuda.synchronize(masks.device)  # else the time counts as the next stage's
            with watch.stage("merge"):
                for done, (segment, mask) in enumerate(zip(own, masks, strict=True), start=1):
                    probability, part = brought_back(mask, grid, volume.grid)
                    merging.add(segment, probability, part)
                    if layering is not None:
                        layering.add(segment, probability, part)
                    if not tell("merge", done, len(own)):
                        raise Cancelled(f"cancelled after {done} of {len(own)} structures of {department}")
        with watch.stage("merge"):
            found = (merging if layering is None else layering).found()
        said = answers(targets, segments, found, revisions=revisions, voxel_ml=volume.grid.voxel_ml)
        layers = None if layering is None else layering.layers()
        return Prediction(merging.label_map(), tuple(said), layers, "; ".join(fallbacks) or None, watch.seconds)

    def fused(self, department: str, revision: int | None = None) -> "Fused":
        """Give the plain network of a department's expert, the served one if none is named, fused now or kept."""
        revision = self.store.served(department) if revision is None else revision
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
        network = fused_network(base, expert)
        broken = next((name for name, weight in network.state_dict().items() if not weight.isfinite().all()), None)
        if broken is not None:  # each structure would be said to be absent
            raise ValueError(
                f"weight {broken} of expert {expert.department}/{expert.revision:04d} holds NaN or infinity; "
                "restore it from a backup or pin another revision"
            )
        network = network.to(self.device)
        return Fused(network, expert.revision, expert.spacing_mm, base.window, base.intensities, queries)

    def _kept_bytes(self) -> int:
        tensors = {p.data_ptr(): p.nbytes for fused in self._networks.values() for p in fused.network.parameters()}
        return sum(tensors.values())

    def _canonical_image(self, volume: Volume, spacing_mm: Sequence[float], intensities: str) -> tuple[Tensor, Grid]:
        x, y, z = spacing_mm
        try:
            return canonical_image(volume, (x, y, z), intensities, device=str(self.device))
        except RuntimeError as error:
            if self.device.type == "cpu" or not is_out_of_memory(error):
                raise
        return canonical_image(volume, (x, y, z), intensities)  # its windows go to the device one by one

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


def _go_on(stage: str, done: int, total: int) -> bool:
    """The progress of those who want none."""
    return True
