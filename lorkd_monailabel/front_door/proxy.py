"""The way to the DICOMweb server for viewers, where the operator opens it (``--conf allow proxy``).

MONAI Label's own sends whatever path it is given, so that the whole server behind lies open, with its password.
"""

import re
from typing import Any

import anyio.to_thread
import requests
from fastapi import HTTPException, Request, Response

PATHS = re.compile(r"(?:studies|series|instances)(?:/[A-Za-z0-9._-]+)*/?")
"""What DICOMweb has, as seen from its root; a segment of dots only is refused besides."""

PASSED = ("accept", "content-type")
"""Headers that go on; the user's token does not."""

RETURNED = ("content-type", "etag", "last-modified")


async def proxied(request: Request, op: str, path: str) -> Response:
    """Pass a request on to the DICOMweb server of the studies.

    Args:
        request: of a viewer.
        op: ``wado``, ``qido``, ``stow`` or nothing: whose prefix the path gets.
        path: of the resource.

    Raises:
        ValueError: the path is not one of DICOMweb.
        HTTPException: 404 where the studies are a folder; 502 where the server behind can't be reached.
    """
    from monailabel.config import settings

    root = settings.MONAI_LABEL_STUDIES.rstrip("/")
    if not root.startswith(("http://", "https://")):
        raise HTTPException(404, "the studies are a folder; there is no DICOMweb server behind this one")
    if not PATHS.fullmatch(path) or any(set(part) == {"."} for part in path.split("/")):
        raise ValueError(f"path {path[:200]!r} is not one of DICOMweb; it begins with studies, series or instances")
    prefix = {
        "wado": settings.MONAI_LABEL_WADO_PREFIX,
        "qido": settings.MONAI_LABEL_WADO_PREFIX if path.endswith("metadata") else settings.MONAI_LABEL_QIDO_PREFIX,
        "stow": settings.MONAI_LABEL_STOW_PREFIX,
    }.get(op)
    address = "/".join(filter(None, (root, prefix, path)))
    body = await request.body()
    headers = {key: request.headers[key] for key in PASSED if key in request.headers}
    name, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD

    def ask() -> requests.Response:
        return requests.request(
            request.method,
            address,
            params=list(request.query_params.multi_items()),
            data=body or None,
            headers=headers,
            auth=(name, password) if name and password else None,
            timeout=settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT,
            allow_redirects=False,
        )

    try:
        reply = await anyio.to_thread.run_sync(ask)
    except requests.RequestException as error:
        raise HTTPException(502, "the DICOMweb server can't be reached; tell the administrator") from error
    kept: dict[str, Any] = {key: reply.headers[key] for key in RETURNED if key in reply.headers}
    return Response(reply.content, reply.status_code, kept)
