"""What names and options may hold."""

import json
from types import SimpleNamespace

import pytest

from lorkd_monailabel.front_door.checks import check_name, check_upload, check_value, checked_object


@pytest.mark.parametrize(
    "name", ["ct 1", "Müller, Änne (2)", "1.2.840.113619.2.55.3", "患者", "mu\u0308ller", "a'b", "-x"]
)
def test_names_of_images(name):
    check_name("image", name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/etc/hosts", "must be a name, not a path"),
        ("a\\b", "must be a name, not a path"),
        ("a\0b", "must be a name, not a path"),
        ("..", "must be a name, not a path"),
        ("a\nb", r"must be a name without '\\n'"),
        ("a\u202eb", r"must be a name without '\\u202e'"),
        ("a\ud800b", r"must be a name without '\\ud800'"),
        ("a:b", "must be a name without ':'"),
        ("$(x)", r"must be a name without '\$'"),
        (".hidden", "begins with no dot or space"),
        ("a ", "begins with no dot or space"),
        ("", "at most 200 bytes"),
        ("ä" * 101, "at most 200 bytes"),
    ],
)
def test_what_no_image_is_called(name, message):
    with pytest.raises(ValueError, match=message):
        check_name("image", name)


def test_names_that_programs_give_are_plainer():
    check_name("tag", "final")
    for value in ("a b", "ä", "-x", "a" * 101, ""):
        with pytest.raises(ValueError, match="letters, digits"):
            check_name("tag", value)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("ct.nii.gz", "ct.nii.gz"), ("/a/b/ct.nrrd", "ct.nrrd"), ("..\\..\\x.MHA", "x.MHA"), (None, None)],
)
def test_uploads_keep_nothing_but_their_name(sent, kept):
    file = SimpleNamespace(filename=sent)
    check_upload(file)
    assert file.filename == kept


@pytest.mark.parametrize("name", ["main.py", "datastore_v2.json", "x.nii.gz/..", "a\0.nii", "nii", "x" * 300 + ".nii"])
def test_uploads_that_are_refused(name):
    with pytest.raises(ValueError, match=r"must be|must not"):
        check_upload(SimpleNamespace(filename=name))


def test_options_are_an_object_of_sound_values():
    text = json.dumps({"text": "/liver; ../spleen", "label_info": [{"name": "a/b", "idx": 1}], "x": 1.5, "none": None})
    assert checked_object(text, key="params", limit=1000)["x"] == 1.5
    assert checked_object("", key="params", limit=1000) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "params must be a JSON object, not list"),
        ("3", "params must be a JSON object, not int"),
        ('{"model": "x"}', "params must not hold 'model'"),
        ('{"label_tag": "a/b"}', "label_tag 'a/b' must be a name, not a path"),
        ('{"a": NaN}', "a in params must be a finite number"),
        ('{"a": [1e999]}', "a in params must be a finite number"),
        ('{"a": "\\u0000"}', "holds NUL or half a character"),
        ('{"a": "\\ud800"}', "holds NUL or half a character"),
        ('{"\\ud800": 1}', "holds NUL or half a character"),
        ('{"a": "/etc/passwd"}', "a in params must be no path, but is '/etc/passwd'"),
        ('{"a": {"b": ["x/../y"]}}', "b in params must be no path"),
        ('{"a": "C:\\\\x"}', "must be no path"),
        ('{"a": "~/x"}', "must be no path"),
        ('{"a": ' * 20 + "1" + "}" * 20, "nested more than 16 deep"),
        ('{"a": "' + "x" * 1000 + '"}', "params is longer than 0 KiB"),
    ],
)
def test_options_that_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        checked_object(text, key="params", limit=1000, forbidden=frozenset({"model"}))


def test_the_depth_that_is_allowed():
    value = 1
    for _ in range(16):
        value = [value]
    check_value(value, key="params")
    with pytest.raises(ValueError, match="nested more than 16 deep"):
        check_value([value], key="params")
