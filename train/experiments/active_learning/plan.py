"""What the experiment does, as data."""

from dataclasses import dataclass, field, replace

STRATEGIES = ("random", "uncertainty", "diversity", "uncertainty_diversity")
DEPARTMENTS = ("pelvis", "abdomen")


@dataclass(frozen=True)
class Plan:
    """Numbers of the experiment.

    Attributes:
        departments: in which cases are annotated, each for itself.
        strategies: that choose them.
        seeds: of the first cases, the factors and the samples; all strategies of a seed begin alike.
        start: cases that are labelled at first.
        each: cases that are labelled between two trainings.
        rounds: trainings of a strategy, the first one included; fewer where no case is left.
        steps: of each training, which always begins with a new expert.
        batch_size: of each step.
        learning_rate: of the factors.
        balance: of the cross-entropy.
        rank: of the expert; its decoder has twice as much, as far as its layers allow.
        patch: voxels along each axis.
        margin_mm: of the body around the structures, that patches are cut from.
        foreground: share of the patches that are cut around a structure.
        max_queries: structures asked for at once.
        spacing_mm: department, or ``default``, -> spacing of its grid.
        overlap: of the windows in the validation.
    """

    departments: tuple[str, ...] = DEPARTMENTS
    strategies: tuple[str, ...] = STRATEGIES
    seeds: tuple[int, ...] = (0, 1, 2)
    start: int = 2
    each: int = 2
    rounds: int = 5
    steps: int = 300
    batch_size: int = 2
    learning_rate: float = 2e-3
    balance: float = 0.5
    rank: int = 8
    patch: int = 40
    margin_mm: float = 100.0
    foreground: float = 0.6
    max_queries: int = 16
    spacing_mm: dict[str, float] = field(default_factory=lambda: {"default": 3.0, "abdomen": 3.5, "pelvis": 2.5})
    overlap: float = 0.25

    def of_training(self) -> "Plan":
        """Give what a training and its measurement depend on, without what is trained how often."""
        return replace(self, departments=(), strategies=(), seeds=(), start=0, each=0, rounds=0)

    def spacing_of(self, department: str) -> float:
        """Give the spacing of a department's grid, in mm."""
        return self.spacing_mm.get(department, self.spacing_mm["default"])
