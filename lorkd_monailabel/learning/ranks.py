"""Loss reduction of the warm-up -> rank of each department (LoRKD*, Eq. 2)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

RULES = ("equal", "loss_reduction")
ROUNDINGS = ("floor_even", "nearest_even")
NOISE = 1e-9
"""What a value of Eq. 2 may lie below a whole number and still be it: equal reductions differ in the last bits."""


@dataclass(frozen=True)
class RankRule:
    """How the departments of a run come to their ranks.

    Attributes:
        name: ``equal`` (LoRKD) or ``loss_reduction`` (LoRKD*).
        rank: of every department under ``equal``, r of Eq. 2 under ``loss_reduction``.
        rounding: of Eq. 2, see ``round_even``.
        least: bound of what Eq. 2 gives.
        most: bound of what Eq. 2 gives.
        given: department -> rank that wins over the rule, whatever the bounds.

    Raises:
        ValueError: an unknown rule or rounding, a rank below 1, or bounds that leave nothing.
    """

    name: str = "equal"
    rank: int = 4
    rounding: str = "floor_even"
    least: int = 2
    most: int = 16
    given: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise ValueError(f"rank_rule {self.name!r} is unknown; use one of {', '.join(RULES)}")
        if self.rank < 1:
            raise ValueError(f"rank {self.rank} must be at least 1; set rank in the config")
        _check_rounding(self.rounding)
        _check_bounds(self.least, self.most)


@dataclass(frozen=True)
class RankChoice:
    """The rank of a department and what led to it; what was not measured or does not apply is None.

    Attributes:
        rank: of the department.
        reason: ``loss_reduction``, ``nothing_learned`` (no department's loss fell), ``equal``, ``given`` in the config,
            or ``kept`` from the expert that the run starts from.
        before: loss before the warm-up.
        after: loss after it.
        reduction: the first less the second; negative where the loss rose.
        ratio: the reduction over the mean of all departments, where a loss that rose counts as 0.
        value: of Eq. 2 before rounding.
        rounded: the value after rounding, before the bounds.
        bound: ``least`` or ``most`` where that bound changed the rank.
        samples: whose mean the losses are.
    """

    rank: int
    reason: str
    before: float | None = None
    after: float | None = None
    reduction: float | None = None
    ratio: float | None = None
    value: float | None = None
    rounded: int | None = None
    bound: str | None = None
    samples: int | None = None


def round_even(value: float, rounding: str = "floor_even") -> int:
    """Round to an even number.

    Args:
        value: zero or more.
        rounding: ``floor_even`` takes the next even number below, which alone fits both lists of ranks that the paper's
            authors released; ``nearest_even`` is what the paper prints, and an odd number goes up.

    Raises:
        ValueError: an unknown rounding.
    """
    _check_rounding(rounding)
    return 2 * math.floor((value + (1 if rounding == "nearest_even" else 0)) / 2 + NOISE)


def ranks_by_loss_reduction(
    losses: Mapping[str, tuple[float, float]],
    *,
    rank: int,
    rounding: str = "floor_even",
    least: int = 2,
    most: int = 16,
) -> dict[str, RankChoice]:
    """Give each department a rank by how much the warm-up reduced its loss (LoRKD Eq. 2).

    ``r_i = [rank * (dL_i / mean dL)^2]_e``, then held within the bounds. A loss that rose or stood still counts as a
    reduction of 0, in the mean too, and so gets ``least``: the square of a negative ratio would reward it. Where no
    department's loss fell there is nothing to tell them apart by, and every one gets ``rank``.

    Args:
        losses: department -> loss before and after the warm-up.
        rank: r of the equation.
        rounding: see ``round_even``.
        least: bound of the ranks.
        most: bound of the ranks.

    Raises:
        ValueError: a loss that is not finite, an unknown rounding, or bounds that leave nothing.
    """
    _check_rounding(rounding)
    _check_bounds(least, most)
    _check_losses(losses)
    reductions = {department: before - after for department, (before, after) in losses.items()}
    largest = max(reductions.values(), default=0.0)
    choices = {}
    # In parts of the largest, equal reductions have a ratio of exactly 1, and the smallest of numbers does not vanish.
    parts = {department: max(reduction, 0.0) / largest for department, reduction in reductions.items() if largest > 0}
    for department, (before, after) in losses.items():
        measured = RankChoice(rank, "nothing_learned", before, after, reductions[department])
        if largest > 0:
            ratio = parts[department] / (math.fsum(parts.values()) / len(parts))
            value = rank * ratio**2
            rounded = round_even(value, rounding)
            held = min(max(rounded, least), most)
            bound = None if held == rounded else "least" if held > rounded else "most"
            measured = replace(
                measured, rank=held, reason="loss_reduction", ratio=ratio, value=value, rounded=rounded, bound=bound
            )
        choices[department] = measured
    return choices


def choose_ranks(
    rule: RankRule,
    departments: Sequence[str],
    *,
    losses: Mapping[str, tuple[float, float]] | None = None,
    kept: Mapping[str, int] | None = None,
) -> dict[str, RankChoice]:
    """Give every department its rank: the one of the expert it starts from, the one given, or the rule's.

    Args:
        rule: of the run.
        departments: of the run.
        losses: department -> loss before and after the warm-up, for all departments; None where they were not measured.
        kept: department -> rank of the expert that the run starts from.

    Raises:
        ValueError: see ``ranks_by_loss_reduction``.
    """
    choices = {department: RankChoice(rule.rank, "equal") for department in departments}
    decided = {**rule.given, **(kept or {})}
    if losses is not None:
        # Those whose rank is decided count in the mean too, but can do without a loss.
        usable = [name for name in departments if name not in decided or all(map(math.isfinite, losses[name]))]
        choices |= ranks_by_loss_reduction(
            {department: losses[department] for department in usable},
            rank=rule.rank,
            rounding=rule.rounding,
            least=rule.least,
            most=rule.most,
        )
    for reason, ranks in (("given", rule.given), ("kept", kept or {})):
        for department, rank in ranks.items():
            choices[department] = replace(choices[department], rank=rank, reason=reason, bound=None)
    return choices


def needs_losses(
    rule: RankRule, departments: Sequence[str], *, kept: Mapping[str, int], limit: int, warmup_steps: int
) -> bool:
    """Say whether the warm-up has to be measured, and refuse before it what could not be done after it.

    Args:
        rule: of the run.
        departments: of the run.
        kept: department -> rank of the expert that the run starts from.
        limit: largest rank that any layer of the network can use.
        warmup_steps: of the run.

    Raises:
        ValueError: an unknown department, a rank over the limit or other than the expert's, or no warm-up.
    """
    for department, rank in rule.given.items():
        if department not in departments:
            raise ValueError(f"ranks.{department} is of no department of the run; it has {', '.join(departments)}")
        check_rank(department, rank, limit=limit)
        if kept.get(department, rank) != rank:
            raise ValueError(
                f"ranks.{department} is {rank}, but the expert that the run starts from has rank {kept[department]}; "
                f"leave ranks.{department} out of the config"
            )
    undecided = [department for department in departments if department not in {*kept, *rule.given}]
    for department in undecided:
        check_rank(department, rule.rank, limit=limit)
    if rule.name == "equal" or not undecided:
        return False
    if rule.most > limit:
        raise ValueError(f"most_rank {rule.most} is more than the largest layer can use; set it to {limit} or less")
    if warmup_steps < 1:
        raise ValueError(f"rank_rule {rule.name} needs a warm-up, not {warmup_steps} steps; set warmup_steps higher")
    return True


def check_rank(department: str, rank: int, *, limit: int) -> None:
    """Refuse a rank that not even the largest layer of the network could use.

    Raises:
        ValueError: it is such a one, or below 1.
    """
    if not 1 <= rank <= limit:
        raise ValueError(
            f"rank {rank} of {department} must be in 1..{limit}, what the largest layer of the network can use; "
            f"set ranks.{department} in the config, or rank for all departments"
        )


def _check_rounding(rounding: str) -> None:
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding {rounding!r} is unknown; use one of {', '.join(ROUNDINGS)}")


def _check_bounds(least: int, most: int) -> None:
    if not 1 <= least <= most:
        raise ValueError(f"least_rank {least} and most_rank {most} must be 1 or more and in this order; set them so")


def _check_losses(losses: Mapping[str, tuple[float, float]]) -> None:
    for department, pair in losses.items():
        for moment, loss in zip(("before", "after"), pair, strict=True):
            if not math.isfinite(loss):
                raise ValueError(
                    f"the loss of {department} {moment} the warm-up is {loss}, and a rank needs a finite one; "
                    f"set a smaller learning_rate or ranks.{department} in the config"
                )
