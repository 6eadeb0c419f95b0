"""Tests of lorkd_monailabel.teachers.choose."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lorkd_monailabel.experts import Base
from lorkd_monailabel.store import base_header, write_file
from lorkd_monailabel.teachers.choose import teacher_of
from lorkd_monailabel.teachers.network import NetworkTeacher
from lorkd_monailabel.text_encoder import QueryTable


def test_a_teacher_is_what_its_path_is(
    tmp_path: Path,
    tiny_base: Base,
    table: QueryTable,
    make_bundle: Callable[..., Path],
    script: Callable[..., Path],
    beside: Callable[..., Path],
) -> None:
    path = tmp_path / "foundation.safetensors"
    write_file(path, base_header(tiny_base, "foundation"), tiny_base.weights)
    chosen = teacher_of(path, table=table)
    assert isinstance(chosen.teacher, NetworkTeacher)
    assert (chosen.about, chosen.stride, chosen.spacing_mm) == ({"foundation": tiny_base.sha256}, 2, None)
    with pytest.raises(ValueError, match=r"on 'fixed' intensities, the students see 'sat'; set data\.intensities to"):
        teacher_of(path, table=table, intensities="sat")
    with pytest.raises(ValueError, match="with another query table; train it anew with this one, or set queries"):
        teacher_of(path, table=replace(table, space="other"))

    program = script(tmp_path / "bright.ts")
    beside(program, spacing_mm=2)
    for kind, file, weights in (
        ("bundle", make_bundle("a"), tmp_path / "a/models/model.pt"),
        ("bundle", make_bundle("b", kind="zip"), tmp_path / "b.zip"),
        ("program", program, program),
    ):
        chosen = teacher_of(file, table=table)
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        assert chosen.about == {"teacher": {"kind": kind, "name": file.name, "sha256": digest}}
        assert chosen.stride == 1
    assert chosen.spacing_mm == (2, 2, 2)

    for name in ("model.pt", "none", "notes.txt"):
        with pytest.raises(ValueError, match=f"{name} is no teacher that can be loaded: give a foundation"):
            teacher_of(tmp_path / name, table=table)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is no MONAI Bundle"):
        teacher_of(tmp_path / "empty", table=table)
