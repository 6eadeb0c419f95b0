"""The audit log, for the administrator."""

from typing import Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from lorkd_monailabel.front_door.checks import check_name

router = APIRouter(tags=["Operation"])


class AuditLog(BaseModel):
    """Lines of the log, the newest last."""

    lines: list[dict[str, Any]] = Field(description="time, user, client, action and what belongs to it")


@router.get("/audit", summary="Who changed what, and when")
def audit(
    limit: int = Query(100, ge=1, le=10_000, description="most lines"),
    image: str = Query("", description="id of an image: only the lines about it"),
) -> AuditLog:
    """Give the newest lines. Images stand there as references; naming one finds its lines."""
    from monailabel.interfaces.utils.app import app_instance

    if image:
        check_name("image", image)
    return AuditLog(lines=app_instance().audit.lines(limit, image=image))
