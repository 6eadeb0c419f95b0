"""The report that says why each department got its rank."""

import math
from collections.abc import Mapping

from lorkd_monailabel.learning.ranks import RankChoice, RankRule


def report(
    choices: Mapping[str, RankChoice],
    rule: RankRule,
    *,
    probe_samples: int,
    warmup_steps: int,
    parameters: Mapping[str, int] | None = None,
) -> str:
    """Write down in Markdown why each department got its rank.

    Args:
        choices: department -> rank and what led to it.
        rule: of the run.
        probe_samples: of each department, that its loss is the mean of.
        warmup_steps: between the two losses.
        parameters: department -> number of parameters of its expert.
    """
    lines = ["# Ranks of the departments", "", _rule_sentence(rule), ""]
    reductions = [choice.reduction for choice in choices.values() if choice.reduction is not None]
    mean = math.fsum(max(reduction, 0.0) for reduction in reductions) / max(1, len(reductions))
    if reductions:
        lines += [
            f"A loss is the mean over the same {probe_samples} samples of the department, before the first and after "
            f"the last of {warmup_steps} warm-up steps of the base alone. The mean reduction is {mean:.4f}.",
            "",
        ]
    head = (
        "department",
        "loss before",
        "loss after",
        "reduction",
        "over the mean",
        "Eq. 2",
        "rounded",
        "bound",
        "rank",
    )
    lines += [f"| {' | '.join(head)} |", "|---|" + "---:|" * 6 + "---|---:|"]
    for department, own in choices.items():
        numbers = [own.before, own.after, own.reduction, own.ratio, own.value]
        cells = [*("-" if number is None else f"{number:.4f}" for number in numbers)]
        cells += ["-" if own.rounded is None else str(own.rounded), own.bound or "-", str(own.rank)]
        lines.append(f"| {' | '.join([department, *cells])} |")
    lines.append("")
    for name, own in choices.items():
        lines.append(f"- **{name}** gets rank {own.rank}: {_why(name, own, rule, mean)}")
        if own.samples is not None and own.samples < probe_samples:
            lines[-1] += f" Only {own.samples} of the {probe_samples} samples had a finite loss both times."
    if parameters:
        each = ", ".join(f"{department} {number:,}" for department, number in parameters.items())
        lines += ["", f"Parameters of the experts: {sum(parameters.values()):,} ({each})."]
    return "\n".join(lines) + "\n"


def _rule_sentence(rule: RankRule) -> str:
    if rule.name == "equal":
        return f"Rule: `equal` (LoRKD): every department gets rank {rule.rank}."
    rounding = {
        "floor_even": "rounded down to an even number (`floor_even`)",
        "nearest_even": "rounded to the nearest even number, odd ones up (`nearest_even`)",
    }[rule.rounding]
    return (
        "Rule: `loss_reduction` (LoRKD*, Eq. 2): r · (reduction of the department's loss / mean reduction)² with "
        f"r = {rule.rank}, {rounding}, held within {rule.least} to {rule.most}."
    )


def _why(department: str, own: RankChoice, rule: RankRule, mean: float) -> str:
    if own.reason == "given":
        return f"`ranks.{department}` of the config wins over the rule."
    if own.reason == "kept":
        return "the run starts from an expert of that rank."
    if own.reason == "equal":
        return "all departments get the same."
    if own.reduction is None or own.value is None or own.ratio is None:
        return f"no department's loss fell in the warm-up, so all get r = {rule.rank}."
    if own.reduction <= 0:
        moved = f"rose by {-own.reduction:.4f}" if own.reduction < 0 else "stood still"
        return f"its loss {moved} in the warm-up, which counts as no reduction, and {own.rank} is the least."
    held = {
        None: f"which is rounded to {own.rounded}.",
        "least": f"which is rounded to {own.rounded}, below the least of {rule.least}.",
        "most": f"which is rounded to {own.rounded}, above the most of {rule.most}.",
    }[own.bound]
    return (
        f"its loss fell by {own.reduction:.4f}, {own.ratio:.2f} times the mean of {mean:.4f}; "
        f"{rule.rank} · {own.ratio:.2f}² = {own.value:.2f}, {held}"
    )
