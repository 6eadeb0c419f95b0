"""The gate before publication: an expert that is worse than the served one on the validation cases stays outside."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from lorkd_monailabel.candidates import keep
from lorkd_monailabel.experts import Expert
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.tasks.training.validation import Scores, Verdict


def told_scores(new: Mapping[str, float], current: Mapping[str, float] | None, verdict: Verdict) -> dict[str, Any]:
    """Give the scores of both experts for people: means over what both know, and structure by structure."""
    names = dict.fromkeys([*new, *(current or {})])
    structures = {name: {"new": new.get(name), "current": (current or {}).get(name)} for name in names}
    return {"new": verdict.new, "current": verdict.current, "structures": structures}


def pass_gate(
    store: ExpertStore,
    expert: Expert,
    *,
    scores: Scores,
    compared_with: int | None,
    verdict: Verdict,
    force: bool,
) -> dict[str, Any]:
    """Publish an expert with its figures, or keep it as a candidate with them.

    Args:
        store: of both.
        expert: new.
        scores: of the new expert.
        compared_with: revision that it was compared with; None without one.
        verdict: of the comparison.
        force: publish whatever the verdict is.

    Returns:
        ``published``, ``revision`` or ``candidate``, and ``message``.
    """
    comparison = {"revision": compared_with, "current": verdict.current, "new": verdict.new, "forced": force}
    about = {**expert.about, "comparison": comparison, "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    whole = replace(expert, metrics=dict(scores), about=about)
    if not verdict.better and not force:
        candidate = keep(store, whole)
        message = f"{verdict.message}: kept as candidate {candidate}, nothing is published"
        return {"published": False, "revision": None, "candidate": candidate, "message": message}
    revision = store.publish(whole)
    message = f"{verdict.message}: published as {expert.department}/{revision:04d}"
    if force and not verdict.better:
        message += ", as force says"
    served = store.served(expert.department)
    if served != revision:
        message += f"; revision {served} is pinned and goes on being served"
    return {"published": True, "revision": revision, "candidate": None, "message": message}
