"""What tests of learning share: a decomposition of tiny networks that takes a second."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorkd_monailabel.learning.decomposition import Decomposition, decompose
from lorkd_monailabel.learning.engine import Engine
from lorkd_monailabel.learning.losses import Objective
from lorkd_monailabel.learning.samples import Samples
from lorkd_monailabel.learning.training import Loop, Progress
from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.teachers.network import NetworkTeacher
from lorkd_monailabel.text_encoder import QueryTable


@pytest.fixture
def run_phases() -> Callable[..., list[tuple[str, int, float]]]:
    """Decompose a tiny foundation."""

    def run_phases(
        decomposition: Decomposition,
        folder: Path,
        table: QueryTable,
        samples: Samples,
        *,
        steps: tuple[int, int] = (2, 3),
        stop_at: tuple[str, int] | None = None,
        at: Callable[[str, int], None] = lambda phase, step: None,
        **changed: Any,
    ) -> list[tuple[str, int, float]]:
        """Decompose; the phase, step and loss of every report."""
        seen: list[tuple[str, int, float]] = []
        torch.manual_seed(7)
        foundation = build_segmenter("tiny").eval()

        def report(phase: str) -> Callable[[Progress], None]:
            def note(progress: Progress) -> None:
                seen.append((phase, progress.step, progress.loss))
                at(phase, progress.step)

            return note

        decompose(
            decomposition,
            samples,
            Loop(4, lambda: bool(stop_at and seen) and seen[-1][:2] == stop_at, workers=0),
            warmup_samples=samples,
            teacher=NetworkTeacher(foundation, table),
            queries=table,
            warmup_steps=steps[0],
            steps=steps[1],
            expert_learning_rate=1e-2,
            objective=Objective(balance=0.5),
            engine=Engine(bf16=False),
            folder=folder,
            report=report,
            **{"learning_rate": 1e-2, **changed},
        )
        return seen

    return run_phases
