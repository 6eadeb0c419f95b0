"""What the module offers when Slicer has started: terms for segments, by Slicer's own logic, and sample data."""

import sys
from types import SimpleNamespace

import pytest

from lorkd_monailabel.departments import structures
from lorkd_monailabel.label_maps import Segment, slicer_fields
from lorkd_monailabel.volumes import Grid
from tests.slicer.conftest import OBLIQUE
from tests.slicer.driving import pick
from tests.slicer.start import load_module


@pytest.fixture
def offered(slicer, monkeypatch):
    """What Sample Data was given."""
    seen, begun = {}, {}
    logic = SimpleNamespace(registerCustomSampleDataSource=lambda **given: seen.update(given))
    monkeypatch.setitem(sys.modules, "SampleData", SimpleNamespace(SampleDataLogic=logic))
    monkeypatch.setattr(slicer.app, "connect", begun.__setitem__)
    load_module().LoRKD(SimpleNamespace())
    assert seen == {}
    begun["startupCompleted()"]()
    return seen


def test_the_tutorials_volume_is_among_the_samples(offered):
    assert offered["checksums"].removeprefix("SHA256:") == offered["uris"].rpartition("/")[2]
    assert offered["uris"].startswith("https://github.com/Slicer/SlicerTestingData/")


@pytest.mark.usefixtures("offered")
def test_every_structure_can_be_picked_with_its_name_and_color(slicer):
    found = {name: pick(slicer, name) for name in structures()}
    assert {name: told[:2] for name, told in found.items()} == {
        name: (name, structure.color) for name, structure in structures().items()
    }
    assert len({told[2] for told in found.values()}) == len(found)


@pytest.mark.usefixtures("offered")
def test_a_picked_term_has_the_code_of_the_servers_segments(slicer):
    logic, grid = slicer.modules.terminologies.logic(), Grid((4, 4, 4), OBLIQUE)
    without_code = []
    for name, structure in structures().items():
        own, servers = slicer.vtkSlicerTerminologyEntry(), slicer.vtkSlicerTerminologyEntry()
        assert logic.DeserializeTerminologyEntry(pick(slicer, name)[2], own)
        tags = slicer_fields([Segment(1, structure)], grid)["Segment0_Tags"]
        assert logic.DeserializeTerminologyEntry(tags.removeprefix("TerminologyEntry:").removesuffix("|"), servers)
        assert own.GetTypeObject().GetAsString() == servers.GetTypeObject().GetAsString()
        if not logic.AreTerminologyEntriesEqual(own, servers):
            assert own.GetTypeModifierObject().GetCodingSchemeDesignator() == "99LORKD"
            without_code.append(name)
    assert len(without_code) == 9, without_code  # parts of what SNOMED has one public code for
