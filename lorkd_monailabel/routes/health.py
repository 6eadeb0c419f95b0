"""Whether the server lives, and whether it can work: for whoever watches over it, without a token."""

import logging
import os
import time
from typing import Any

import requests
from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from lorkd_monailabel import __version__

STUDIES_SECONDS = 10
"""How long an answer of the DICOMweb server stands, so that a watcher does not burden it."""

router = APIRouter(tags=["Operation"])
_LOG = logging.getLogger(__name__)


class Health(BaseModel):
    """The server lives."""

    status: str = Field(description="always ok")
    version: str = Field(description="of this package")


class Readiness(BaseModel):
    """Whether the server can work; 503 where it can't. The server's log says why."""

    ready: bool = Field(description="all of the following")
    store: bool = Field(description="the store of experts can be read and holds one")
    studies: bool = Field(description="the studies can be reached")


@router.get("/health", summary="Whether the server lives")
def health() -> Health:
    """Answers as long as the process does."""
    return Health(status="ok", version=__version__)


@router.get("/ready", summary="Whether the server can work", responses={503: {"model": Readiness}})
def ready(response: Response) -> Readiness:
    """Reads the store and looks at the studies."""
    from monailabel.interfaces.utils.app import app_instance

    instance = app_instance()
    store, studies = store_is_readable(instance.store), studies_are_reachable(instance.studies)
    response.status_code = 200 if store and studies else 503
    return Readiness(ready=store and studies, store=store, studies=studies)


def store_is_readable(store: Any) -> bool:
    """Whether the store has an expert, and the newest of each department can be read."""
    try:
        departments = store.departments()
        for department in departments:
            store.header(department)
    except (ValueError, OSError) as error:
        _LOG.warning("the store can't be read", exc_info=error)
        return False
    return bool(departments)


def studies_are_reachable(studies: str) -> bool:
    """Whether the folder can be listed, or the DICOMweb server answers."""
    if not studies.startswith(("http://", "https://")):
        return os.access(studies, os.R_OK | os.X_OK)
    now = time.monotonic()
    if studies not in _ANSWERED or now - _ANSWERED[studies][0] > STUDIES_SECONDS:
        _ANSWERED[studies] = now, _answers(studies)
    return _ANSWERED[studies][1]


_ANSWERED: dict[str, tuple[float, bool]] = {}
"""When each address was asked, and whether it answered."""


def _answers(studies: str) -> bool:
    try:
        requests.get(f"{studies}/studies", params={"limit": "1"}, timeout=5, stream=True).close()
    except requests.RequestException as error:
        _LOG.warning("the DICOMweb server of the studies does not answer", exc_info=error)
        return False
    return True
