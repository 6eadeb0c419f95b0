"""Tests of lorkd_monailabel.tasks.options."""

import uuid

import pytest

from lorkd_monailabel.tasks.options import choice, client_id, job_id, text

OWN = "3f2b8c54-7d10-4e7c-9a65-0a4b1c2d3e4f"


def test_text_by_hand():
    request = {"a": " liver ", "b": ["first", "second"], "c": [], "d": None, "e": 3}
    assert [text(request, name) for name in "abcdx"] == ["liver", "first", "", "", ""]
    with pytest.raises(ValueError, match="e 3 must be text; put it in quotation marks"):
        text(request, "e")


def test_choice_by_hand():
    known = ("", "uint8", "uint16")
    assert [choice({"type": each}, "type", known) for each in ("", "UINT8", ["uint16"])] == ["", "uint8", "uint16"]
    with pytest.raises(ValueError, match="type 'int32' must be one of uint8, uint16; or leave it out"):
        choice({"type": "int32"}, "type", known)


def test_job_is_the_clients_or_a_new_one():
    # as it was given, for the client asks for it by this name
    assert [job_id({"job": each}) for each in (OWN, OWN.upper())] == [OWN, OWN.upper()]
    assert job_id({}) != job_id({})
    assert uuid.UUID(job_id({})).version == 4


@pytest.mark.parametrize("given", ["1", f"{{{OWN}}}", OWN.replace("-", ""), f"{OWN}/..", f"{OWN}\n\n1", "x" * 999])
def test_job_must_be_a_uuid(given):
    with pytest.raises(ValueError, match="must be a UUID; make a new one for each request, or leave it out"):
        job_id({"job": given})


def test_client_has_a_short_name():
    assert (client_id({}), client_id({"client_id": "annotator 1"})) == ("", "annotator 1")
    with pytest.raises(ValueError, match="client_id has 201 characters, but may have 200"):
        client_id({"client_id": "x" * 201})
