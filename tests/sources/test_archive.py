"""An archive of which one DICOM SEG gives no answer."""

from typing import Any

import pytest
import requests

from lorkd_monailabel.sources.archive import Archive

IMAGE, GOOD, BAD = "1.2.3.1", "1.2.3.2", "1.2.3.3"


class Client:
    """Stands for the client of an archive with an image and two DICOM SEG of it."""

    def __init__(self, failure: Exception | None) -> None:
        self.failure = failure

    def set_http_retry_params(self, **options: Any) -> None:
        """Has nothing to try again."""

    def search_for_series(self, *, search_filters: dict[str, str], fields: list[str]) -> list[dict[str, Any]]:
        """List the series of a modality."""
        uids = {"SEG": (GOOD, BAD), "CT": (IMAGE,)}[search_filters["Modality"]]
        return [series(uid, search_filters["Modality"]) for uid in uids]

    def retrieve_series_metadata(self, study: str, uid: str) -> list[dict[str, Any]]:
        """Describe a DICOM SEG."""
        if uid == GOOD:
            return [{"00081115": {"vr": "SQ", "Value": [series(IMAGE, "CT")]}}]
        if self.failure is not None:
            raise self.failure
        return []


def series(uid: str, modality: str) -> dict[str, Any]:
    return {
        "0020000D": {"vr": "UI", "Value": ["1.2.3"]},
        "0020000E": {"vr": "UI", "Value": [uid]},
        "00080060": {"vr": "CS", "Value": [modality]},
    }


@pytest.mark.parametrize("failure", [None, requests.HTTPError("404 Not Found"), ValueError("no UID")])
def test_a_label_that_gives_no_answer_keeps_no_other_away(failure, caplog):
    listing = Archive(Client(failure), {"Modality": "CT"}, 60).listing()
    assert list(listing.images) == [IMAGE]
    assert listing.labels == {IMAGE: ("1.2.3", GOOD)}
    assert f"DICOM SEG {BAD} is left out" in caplog.text


def test_an_archive_that_is_down_is_no_empty_one():
    with pytest.raises(Exception, match="the archive gives no answer") as caught:
        Archive(Client(requests.ConnectionError("down")), {"Modality": "CT"}, 60).listing()
    assert caught.value.status_code == 502
