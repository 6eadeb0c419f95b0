"""Figures for Prometheus."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from lorkd_monailabel.front_door.figures import FIGURES

router = APIRouter(tags=["Operation"])


@router.get(
    "/metrics",
    summary="Requests, latencies, queue, memory and revisions, for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}},
)
def metrics() -> Response:
    """Give all figures of this process."""
    from monailabel.interfaces.utils.app import app_instance

    return Response(FIGURES.text(app_instance()), media_type=CONTENT_TYPE_LATEST)
