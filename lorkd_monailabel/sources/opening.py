"""The datastore for what ``--studies`` names: a folder, or an archive behind DICOMweb."""

from typing import Any

from dicomweb_client.ext.gcp.session_utils import create_session_from_gcp_credentials
from dicomweb_client.session_utils import create_session_from_user_pass
from dicomweb_client.web import DICOMwebClient
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from monailabel.interfaces.datastore import Datastore
from requests import PreparedRequest, Response, Session
from requests.adapters import HTTPAdapter

from lorkd_monailabel.sources.archive import Archive
from lorkd_monailabel.sources.dicomweb import ArchiveStudies
from lorkd_monailabel.sources.folders import FolderStudies

EXPIRY_SECONDS = 5.0
"""For lists of an archive, unless ``MONAI_LABEL_DICOMWEB_CACHE_EXPIRY`` is set; MONAI Label's two hours are stale."""

SEARCH_FILTER = {"Modality": ["CT", "MR"]}
"""Unless ``MONAI_LABEL_DICOMWEB_SEARCH_FILTER`` is set."""

_TIMEOUTS_SECONDS = 10, 120
_OTHERS = ("xnat", "dsa")


def open_studies(studies: str) -> Datastore | None:
    """Opens a folder or an archive; None where MONAI Label has a datastore of its own (XNAT, DSA).

    Args:
        studies: path, or address that begins with http:// or https://.
    """
    studies = studies.strip()
    if not studies.startswith(("http://", "https://")):
        return FolderStudies(
            studies,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )
    if settings.MONAI_LABEL_DATASTORE.lower() in _OTHERS:
        return None
    archive = Archive(
        _client(studies),
        _set("MONAI_LABEL_DICOMWEB_SEARCH_FILTER", SEARCH_FILTER),
        float(_set("MONAI_LABEL_DICOMWEB_CACHE_EXPIRY", EXPIRY_SECONDS)),
    )
    cache = settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or settings.MONAI_LABEL_DATASTORE_CACHE_PATH
    return ArchiveStudies(archive, (cache or "").strip() or None)


def _set(name: str, otherwise: Any) -> Any:
    """A setting where the operator made it, else our own value, for MONAI Label's would be a wrong one."""
    return getattr(settings, name) if name in settings.model_fields_set else otherwise


def _client(address: str) -> DICOMwebClient:
    if "googleapis.com" in address:
        return DICOMwebClient(url=address, session=create_session_from_gcp_credentials())
    user = settings.MONAI_LABEL_DICOMWEB_USERNAME or settings.MONAI_LABEL_DATASTORE_USERNAME
    password = settings.MONAI_LABEL_DICOMWEB_PASSWORD or settings.MONAI_LABEL_DATASTORE_PASSWORD
    session = create_session_from_user_pass(user, password) if user and password else Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Patient())
    return DICOMwebClientX(
        url=address.rstrip("/"),
        session=session,
        qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
        wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
        stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
    )


class _Patient(HTTPAdapter):
    """Waits for an answer, but not for ever, as requests does by itself."""

    def send(self, request: PreparedRequest, *arguments: Any, **options: Any) -> Response:
        return super().send(request, *arguments, **{**options, "timeout": options.get("timeout") or _TIMEOUTS_SECONDS})
