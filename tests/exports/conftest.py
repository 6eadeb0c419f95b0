"""What tests of exports share: a tiny department, written once in each format."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.exports.formats import FORMATS, Exported, export
from lorkd_monailabel.text_encoder import QueryTable

Write = Callable[..., tuple[Path, Exported]]


@pytest.fixture(scope="session")
def expert(make_expert: Callable[..., Expert]) -> Expert:
    """Liver and spleen, at 2 x 3 x 4 mm."""
    return make_expert(
        spacing_mm=(2.0, 3.0, 4.0),
        revision=7,
        metrics={"liver": 0.912},
        about={"sources": ["set | one"], "licence": "CC BY 4.0"},
    )


@pytest.fixture(scope="session")
def write(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base, expert: Expert, table: QueryTable) -> Write:
    """Export in a format and type, once; gives the folder and what was written."""
    made: dict[tuple[str, str], tuple[Path, Exported]] = {}

    def write(form: str, dtype: str = "float32") -> tuple[Path, Exported]:
        if (form, dtype) not in made:
            folder = tmp_path_factory.mktemp("exports") / f"{form}-{dtype}"
            modality = "ct" if FORMATS[form].one_modality else None
            found = export(tiny_base, expert, table, folder, form=form, modality=modality, dtype=dtype)
            made[form, dtype] = folder, found
        return made[form, dtype]

    return write
