"""Tests of lorkd_monailabel.predictor: what it refuses before a volume is read."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lorkd_monailabel import memory
from lorkd_monailabel.departments import structure
from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.memory import Extent
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.prompts import Target
from lorkd_monailabel.store import ExpertStore


def targets(*names: str) -> list[Target]:
    return [Target(name, structure(name)) for name in names]


def test_memory_is_asked_for_what_an_expert_knows_alone(
    tmp_path: Path, tiny_base: Base, make_expert: Callable[..., Expert], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ExpertStore(tmp_path)
    store.publish_base(tiny_base)
    store.publish(make_expert())
    store.publish(make_expert("thorax", spacing_mm=1.5, structures=("heart",)))
    predictor, extent = Predictor(store), Extent((8, 6, 8), (3.0, 3.0, 3.0))
    # 4 bytes a voxel: the volume, the image and the weights of the windows at the same spacing, and one mask
    monkeypatch.setattr(memory, "free_bytes", lambda: 4 * 384 * 4)
    predictor.check_memory(extent, targets("liver", "stomach", "duodenum", "brain", "left lung upper lobe"))
    with pytest.raises(ValueError, match="needs at least"):
        predictor.check_memory(extent, targets("liver", "spleen"))
