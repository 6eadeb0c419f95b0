"""Volumes that a client sends once and then names by their hash in as many requests as it likes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import APIRouter, FastAPI, HTTPException, Query, Request
from pydantic import BaseModel, Field

from lorkd_monailabel.front_door.foresight import tell
from lorkd_monailabel.sources.uploads import Incoming, Kept, TooLarge, uploads

PIECE_BYTES = 1 << 20


@asynccontextmanager
async def tidied(_: FastAPI) -> AsyncIterator[None]:
    """Remove at the start what was kept for too long while the server was down."""
    await to_thread.run_sync(uploads().tidy)
    yield


router = APIRouter(prefix="/volumes", tags=["Volumes"], lifespan=tidied)


class VolumeStatus(BaseModel):
    """A volume that the server keeps."""

    sha256: str = Field(description="of its content; an inference names it as params.volume")
    bytes: int = Field(description="of its file")
    expires: int = Field(description="Unix time at which it goes, unless it is used before")


@router.put(
    "",
    summary="Send a volume ahead of requests",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put_volume(
    request: Request,
    extension: str = Query(".nii.gz", description="what the file's name would end in: .nii.gz, .nii, .nrrd or .mha"),
) -> VolumeStatus:
    """Keep the body, a volume's file as it is; the same content is kept once, whoever sends it."""
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > uploads().largest_bytes:
        raise HTTPException(413, f"the volume has more than {uploads().largest_bytes} bytes; send a smaller one")
    incoming = await to_thread.run_sync(Incoming, uploads(), extension)
    try:
        piece = bytearray()
        async for part in request.stream():
            piece += part
            if len(piece) >= PIECE_BYTES:
                await to_thread.run_sync(incoming.write, bytes(piece))
                piece.clear()
        await to_thread.run_sync(incoming.write, bytes(piece))
        kept = await to_thread.run_sync(incoming.keep)
    except TooLarge as error:
        raise HTTPException(413, str(error)) from error
    finally:
        incoming.close()
    tell(kept.path)
    return _status(kept)


@router.get("/{sha256}", summary="Ask whether a volume is still there")
def get_volume(sha256: str) -> VolumeStatus:
    """Say what is kept under a hash, and put its end off; 404 where nothing is, so that it must be sent again."""
    return _status(uploads().get(sha256))


def _status(kept: Kept) -> VolumeStatus:
    return VolumeStatus(sha256=kept.sha256, bytes=kept.bytes, expires=kept.expires)
