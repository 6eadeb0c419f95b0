"""Other names of tasks: scripts and viewers may go on to ask for ``segmentation_spleen`` and get our ``abdomen``."""

import re
from collections.abc import Mapping
from typing import TypeVar

Task = TypeVar("Task")
Aliases = tuple[tuple[str, str], ...]
"""Name and the task that it stands for. One name may stand for a model, a train task, a strategy and a scoring method
at once."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")


def aliases_of(text: str) -> Aliases:
    """Read names from text such as "segmentation_spleen=abdomen, segmentation_spleen=finetune_abdomen".

    Raises:
        ValueError: a part is not of that form.
    """
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, task = (each.strip() for each in part.partition("="))
        if not _NAME.fullmatch(name) or not task:
            raise ValueError(
                f"--conf aliases {part[:60]!r} must be like NAME=TASK, a NAME of letters, digits and _ . + -"
            )
        found.append((name, task))
    return tuple(found)


def with_aliases(tasks: Mapping[str, Task], aliases: Aliases) -> dict[str, Task]:
    """Add to tasks the names that stand for one of them; none takes the place of a task."""
    return {**{name: tasks[task] for name, task in aliases if task in tasks}, **tasks}
