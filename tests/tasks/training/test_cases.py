"""Tests of lorkd_monailabel.tasks.training.cases: which cases there are, and that none ever changes sides."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorkd_monailabel.audit import Audit
from lorkd_monailabel.sources.catalogue import Catalogue
from lorkd_monailabel.tasks.training.cases import Labelled, assigned, key_of, labelled, parted
from tests.tasks.conftest import NAMES, TOLD, save_label

MakeOptions = Callable[..., object]
KEY = "key"
REFERENCES = st.text("0123456789abcdef", min_size=16, max_size=16)


@given(runs=st.lists(st.sets(REFERENCES, min_size=2, max_size=6), min_size=1, max_size=5), share=st.floats(0.05, 0.5))
def test_nobody_ever_changes_sides_and_both_sides_get_somebody_new(runs: list[set[str]], share: float) -> None:
    known: dict[str, str] = {}
    for subjects in runs:
        new = subjects - known.keys()
        after = assigned(known, subjects, share=share)
        assert {name: after[name] for name in known} == known
        assert after.keys() == known.keys() | subjects
        if new:
            assert {after[name] for name in subjects} == {"train", "validation"}
        known = after


def test_the_reference_alone_decides() -> None:
    subjects = ["00" * 8, "33" + "00" * 7, "34" * 8, "ff" * 8]
    assert assigned({}, subjects, share=0.2) == {
        "00" * 8: "validation",
        "33" + "00" * 7: "validation",  # 0x33 / 0x100 is 0.199
        "34" * 8: "train",
        "ff" * 8: "train",
    }
    assert assigned({}, ["aa" * 8, "bb" * 8], share=0.2)["aa" * 8] == "validation"
    assert assigned({}, ["00" * 8, "01" * 8], share=0.2)["01" * 8] == "train"


def test_only_what_is_drawn_is_annotated(
    tmp_path: Path, studies: Catalogue, audit: Audit, options: MakeOptions, volume: Callable
) -> None:
    _, labels = volume(0)
    save_label(studies, tmp_path, "one", np.where(labels == 1, labels, 0).astype(np.int16), TOLD)  # Slicer names both
    names = [{"name": "Liver", "idx": 1}, {"name": "my lesion", "idx": 2}]
    save_label(studies, tmp_path, "two", labels, {"label_info": names})
    found = labelled(studies, options(), audit.reference)
    structures = {case.image.name: case.structures for case in found.cases}
    assert structures == {
        "one.nii.gz": {"liver": (1,)},
        "two.nii.gz": {"liver": (1,)},
        "three.nii.gz": {"liver": (1,), "spleen": (2,)},
        "four.nii.gz": {"liver": (1,), "spleen": (2,)},
    }
    assert found.unknown == ("my lesion",)
    assert {case.modality for case in found.cases} == {"ct"} or {case.modality for case in found.cases} == {"mri"}


def test_a_department_has_its_own_cases_and_what_is_unusable_is_left_out(
    tmp_path: Path, studies: Catalogue, audit: Audit, options: MakeOptions, volume: Callable
) -> None:
    _, labels = volume(0)
    save_label(studies, tmp_path, "one", labels, {"label_info": [{"name": "heart", "idx": 1}]})
    save_label(studies, tmp_path, "two", labels, {})
    found = labelled(studies, options(), audit.reference, department="abdomen")
    assert [case.image.name for case in found.cases] == ["four.nii.gz", "three.nii.gz"]
    assert list(found.left_out) == [audit.reference("two")]
    assert "nothing says what the values of its label mean" in found.left_out[audit.reference("two")]
    named = labelled(studies, options(labels="liver=1, spleen=2"), audit.reference, department="abdomen")
    assert len(named.cases) == 3


def test_other_tags_where_they_are_asked_for(
    tmp_path: Path, studies: Catalogue, audit: Audit, options: MakeOptions, volume: Callable
) -> None:
    _, labels = volume(0)
    save_label(studies, tmp_path, "one", labels, {"label_info": [{"name": "pancreas", "idx": 1}]}, "second")
    reader = labelled(studies, options(tags="second,final"), audit.reference).cases
    assert next(case for case in reader if case.image.name == "one.nii.gz").structures == {"pancreas": (1,)}
    assert len(labelled(studies, options(tags="second"), audit.reference).cases) == 1


def test_the_split_is_kept_for_ever_and_names_nobody(
    tmp_path: Path, studies: Catalogue, audit: Audit, options: MakeOptions
) -> None:
    found, path = labelled(studies, options(), audit.reference), tmp_path / "splits.json"
    few = Labelled(found.cases[:2], {}, ())
    first = parted(few, path, share=0.2, key=KEY)
    assert [len(cases) for cases in first] == [1, 1]
    train, validation = parted(found, path, share=0.5, key=KEY)
    assert {case.subject for case in first[0]} <= {case.subject for case in train}
    assert {case.subject for case in first[1]} <= {case.subject for case in validation}
    assert {case.split for case in train} == {"train"}
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert kept["splits"].keys() == {audit.reference(name) for name in NAMES}
    assert parted(found, path, share=0.05, key=KEY) == (train, validation)


def test_images_of_one_study_are_never_parted(studies: Catalogue, audit: Audit, options: MakeOptions) -> None:
    for name in ("one", "two", "three"):
        studies.update_image_info(name, {"StudyInstanceUID": "1.2.3"})
    found = labelled(studies, options(), audit.reference)
    assert len({case.subject for case in found.cases}) == 2
    train, validation = parted(found, studies_path(studies), share=0.2, key=KEY)
    assert sorted((len(train), len(validation))) == [1, 3]


def studies_path(studies: Catalogue) -> Path:
    return Path(studies._datastore_path) / "splits.json"


def test_too_few_cases(tmp_path: Path, studies: Catalogue, audit: Audit, options: MakeOptions) -> None:
    found, path = labelled(studies, options(), audit.reference), tmp_path / "splits.json"
    none = Labelled((), {"ab": "it can't be read"}, ("lesion",))
    with pytest.raises(
        ValueError, match=r"no image has a label .* 'lesion'\) \(1 were left out, .*: it can't be read\)"
    ):
        parted(none, path, share=0.2, key=KEY, department="abdomen")
    with pytest.raises(ValueError, match="one case of abdomen is labelled, but one to train on and one to validate on"):
        parted(Labelled(found.cases[:1], {}, ()), path, share=0.2, key=KEY, department="abdomen")
    assert not path.exists()
    splits = {audit.reference(name): "train" for name in NAMES}
    path.write_text(json.dumps({"key": KEY, "splits": splits}), encoding="utf-8")
    with pytest.raises(ValueError, match="all 4 cases of abdomen were used for train before and can't be validated on"):
        parted(found, path, share=0.2, key=KEY, department="abdomen")


def test_references_of_another_key_would_hide_who_was_trained_on(
    tmp_path: Path, studies: Catalogue, audit: Audit, options: MakeOptions
) -> None:
    found, path = labelled(studies, options(), audit.reference), tmp_path / "splits.json"
    parted(found, path, share=0.2, key=key_of(audit.reference))
    parted(found, path, share=0.2, key=key_of(Audit(audit.path).reference))
    audit.path.with_suffix(".key").unlink()
    with pytest.raises(ValueError, match=r"splits\.json was written with another key than the store's audit\.key"):
        parted(found, path, share=0.2, key=key_of(Audit(audit.path).reference))


@pytest.mark.parametrize("splits", [[], {"ab": "test"}, {"ab": [1]}])
def test_damaged_splits_are_refused(tmp_path: Path, splits: object) -> None:
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"key": KEY, "splits": splits}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"splits\.json is damaged"):
        parted(Labelled((), {}, ()), path, share=0.2, key=KEY)
