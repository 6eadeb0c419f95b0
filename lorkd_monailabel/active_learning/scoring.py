"""Scores of a volume: what the expert of a department, or two networks, make of it, and what it looks like."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from lorkd_monailabel.active_learning.features import image_feature
from lorkd_monailabel.active_learning.uncertainty import disagreement, mean_entropy
from lorkd_monailabel.departments import structure
from lorkd_monailabel.experts import Base, as_float, plain_network
from lorkd_monailabel.masks import network_masks
from lorkd_monailabel.networks.segmenter import Segmenter
from lorkd_monailabel.predictor import Fused, Predictor
from lorkd_monailabel.prompts import Target
from lorkd_monailabel.resampling import resample
from lorkd_monailabel.store import load_base
from lorkd_monailabel.volumes import Grid, Volume, canonical_image

ENTROPY, REVISIONS, FOUNDATION = "entropy", "revisions", "foundation"
MEASURES = (ENTROPY, REVISIONS, FOUNDATION)
FEATURE = "feature"
OVERLAP = 0.25
"""Of neighbouring windows: less than for a segmentation, as these figures only put cases into order."""

Progress = Callable[[int, int], bool]


class Scoring:
    """Scores volumes with the experts of a predictor.

    Args:
        predictor: with the store and the device.
        foundation: path of the foundation that ``foundation`` compares with; None for none.
    """

    def __init__(self, predictor: Predictor, *, foundation: Path | None = None) -> None:
        self.predictor = predictor
        self.store = predictor.store
        self.foundation = foundation
        self._bases: dict[str, tuple[Base, Segmenter]] = {}
        self._foundations: dict[str, Fused] = {}

    def made_of(self, name: str, department: str) -> str:
        """Tell all that a score depends on besides the image.

        Args:
            name: of ``MEASURES``, or ``feature``.
            department: id.

        Raises:
            ValueError: there is nothing to score with.
        """
        served = self._served(department)
        header = self.store.header(department, served)
        if name == FEATURE:
            return f"base {header['base_sha256'][:16]} {header['spacing_mm']}"
        if name == REVISIONS:
            return "revisions {} {}".format(*self._two(department))
        if name == FOUNDATION:
            return f"revision {served}, {self._stamp(self._path())}"
        return f"revision {served}"

    def targets(self, department: str) -> list[Target]:
        """Give all that the served expert of a department knows."""
        return [Target(name, structure(name)) for name in self.predictor.structures(department)]

    def feature(self, volume: Volume, department: str, progress: Progress) -> tuple[float, ...]:
        """Give the feature of an image, see ``image_feature``.

        Raises:
            Cancelled: ``progress`` said so.
        """
        expert = self.store.header(department, self._served(department))
        base, network = self._base(expert["base_sha256"])
        x, y, z = expert["spacing_mm"]
        image, _ = canonical_image(volume, (x, y, z), base.intensities)
        found = image_feature(network, image, base.window, progress)
        return tuple(round(each, 5) for each in found.tolist())

    def measure(self, name: str, volume: Volume, department: str, progress: Progress) -> float:
        """Give the uncertainty of a volume: 0 to 1.

        Args:
            name: ``entropy`` of the served expert, disagreement of the two newest ``revisions``, or of the served
                expert and the ``foundation``.
            volume: to score.
            department: whose expert.
            progress: told windows done and in all, twice for two networks; False ends it.

        Raises:
            Cancelled: ``progress`` said so.
            ValueError: see ``made_of``.
        """
        served = self._served(department)
        structures = self.predictor.structures(department, served)
        ask = partial(self._probabilities, volume=volume, progress=progress)
        if name == ENTROPY:
            found, grid = ask(self.predictor.fused(department, served), names=structures)
            return mean_entropy(found, grid.spacing_mm)
        if name == FOUNDATION:
            fused = self.predictor.fused(department, served)
            found, grid = ask(fused, names=structures)
            other, theirs = ask(self._taught(fused), names=structures)
        else:
            older, newer = self._two(department)
            known = self.predictor.structures(department, older)
            names = [each for each in self.predictor.structures(department, newer) if each in known]
            if not names:
                raise ValueError(
                    f"revisions {older} and {newer} of {department} share no structure; take another measure"
                )
            found, grid = ask(self.predictor.fused(department, newer), names=names)
            other, theirs = ask(self.predictor.fused(department, older), names=names)
        return disagreement(found, other if theirs == grid else resample(other, theirs, grid, "linear"))

    def _probabilities(
        self, fused: Fused, *, volume: Volume, names: Sequence[str], progress: Progress
    ) -> tuple[Tensor, Grid]:
        """Give the probabilities ``(N, X, Y, Z)`` of structures on the network's own grid, and the grid."""
        image, grid = canonical_image(volume, fused.spacing_mm, fused.intensities)
        queries, device = fused.queries.queries(list(names), volume.modality), self.predictor.device

        found, _ = network_masks(
            fused.network,
            image.to(device),
            queries,
            device=device,
            window=fused.window,
            overlap=OVERLAP,
            progress=progress,
        )
        return found.cpu(), grid

    def _served(self, department: str) -> int:
        served = self.store.served(department)
        if served is None:
            raise ValueError(f"{department} has no expert to score cases with; train one, or choose another strategy")
        return served

    def _two(self, department: str) -> tuple[int, int]:
        revisions = self.store.revisions(department)
        if len(revisions) < 2:
            raise ValueError(f"{department} has {len(revisions)} revision, but two are compared; take measure entropy")
        return revisions[-2], revisions[-1]

    def _base(self, sha256: str) -> tuple[Base, Segmenter]:
        """Give a base and its plain network; the last one is kept."""
        if sha256 not in self._bases:
            base = self.store.base(sha256)
            network = plain_network(base.network, as_float(base.weights)).to(self.predictor.device)
            self._bases = {sha256: (base, network)}
        return self._bases[sha256]

    def _path(self) -> Path:
        if self.foundation is None:
            raise ValueError("the server knows no foundation; start it with --conf foundation FILE, or measure entropy")
        return self.foundation

    @staticmethod
    def _stamp(path: Path) -> str:
        return f"foundation {path.stat().st_mtime_ns}"

    def _taught(self, student: Fused) -> Fused:
        """Give the foundation as if it were a network of the student's department."""
        path = self._path()
        if self._stamp(path) not in self._foundations:
            base = load_base(path, "foundation")
            network = plain_network(base.network, as_float(base.weights)).to(self.predictor.device)
            queries = self.store.queries(base.query_space)
            fused = Fused(network, 0, student.spacing_mm, base.window, base.intensities, queries)
            self._foundations = {self._stamp(path): fused}
        return replace(self._foundations[self._stamp(path)], spacing_mm=student.spacing_mm)
