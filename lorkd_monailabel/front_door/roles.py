"""Who may do what: one table of all routes. A request that no row fits is answered here and reaches nothing."""

import enum
import re
from functools import cache
from typing import NamedTuple


class Role(enum.IntEnum):
    """Each role may do what those before it may."""

    ANYONE = 0
    VIEWER = 1
    ANNOTATOR = 2
    TRAINER = 3
    ADMIN = 4


ROLES = {role.name.lower(): role for role in Role if role is not Role.ANYONE}
"""The roles that a token can have."""

_TABLE = """
anyone     GET     /  /docs  /openapi.json  /favicon.ico  /static/{path:path}  /ohif/{path:path}
anyone     GET     /lorkd/health  /lorkd/ready  /auth/
anyone     POST    /auth/token
viewer     GET     /auth/token/valid  /info/  /lorkd/metrics  /session/{session_id}
viewer     GET     /datastore/  /datastore/image  /datastore/image/info  /datastore/label  /datastore/label/info
viewer     HEAD    /datastore/image  /datastore/label
viewer     GET     /train/  /batch/infer  /scoring/  /model/info/{model}
viewer     POST    /infer/{model}  /infer/wsi/{model}  /infer/wsi_v2/{model}
viewer     PUT     /session/
viewer     DELETE  /session/{session_id}
viewer     GET     /lorkd/jobs  /lorkd/jobs/{job_id}  /lorkd/vocabulary  /lorkd/volumes/{sha256}
viewer     GET     /lorkd/experts  /lorkd/experts/{department}  /lorkd/experts/{department}/diff
viewer     GET     /lorkd/experts/{department}/{revision}  /lorkd/training  /lorkd/training/departments
viewer     POST    /lorkd/resolve
viewer     PUT     /lorkd/volumes
viewer     DELETE  /lorkd/jobs/{job_id}
annotator  POST    /activelearning/{strategy}  /batch/infer/{model}
annotator  DELETE  /batch/infer  /lorkd/active-learning/reservations/{image}
annotator  GET     /lorkd/active-learning/{department}
annotator  PUT     /datastore/  /datastore/image  /datastore/image/info
annotator  PUT     /datastore/label  /datastore/label/info  /datastore/updatelabelinfo
annotator  GET     /datastore/dataset
viewer     GET     /proxy/dicom/{path:path}  /proxy/dicom/wado/{path:path}  /proxy/dicom/qido/{path:path}
viewer     GET     /proxy/dicom/stow/{path:path}
annotator  POST    /proxy/dicom/{path:path}  /proxy/dicom/wado/{path:path}  /proxy/dicom/qido/{path:path}
annotator  POST    /proxy/dicom/stow/{path:path}
trainer    POST    /train/  /train/{model}  /scoring/  /scoring/{method}
trainer    DELETE  /train/  /scoring/
trainer    GET     /model/{model}  /lorkd/training/{run}
trainer    POST    /lorkd/training
trainer    DELETE  /lorkd/training/{run}
trainer    POST    /lorkd/experts/{department}/rollback  /lorkd/experts/{department}/pin
trainer    POST    /lorkd/experts/{department}/candidates/{candidate}/publish
trainer    DELETE  /lorkd/experts/{department}/candidates/{candidate}
admin      PUT     /model/{model}
admin      DELETE  /model/{model}  /datastore/  /datastore/image  /datastore/label
admin      GET     /logs/  /logs/gpu  /lorkd/audit
admin      POST    /reload
"""


class Row(NamedTuple):
    """What a route needs."""

    method: str
    template: str
    role: Role


class Match(NamedTuple):
    """The row that a request fits, and what its address names."""

    row: Row
    parameters: dict[str, str]


@cache
def rows() -> tuple[Row, ...]:
    """Give the whole table, the literal templates first."""
    found = []
    for line in _TABLE.strip().splitlines():
        role, method, *templates = line.split()
        found += [Row(method, template, Role[role.upper()]) for template in templates]
    return tuple(sorted(found, key=lambda row: ("{" in row.template, row.template)))


@cache
def _patterns() -> tuple[tuple[Row, re.Pattern[str]], ...]:
    from starlette.routing import compile_path  # here, for the command line needs the roles without a server

    return tuple((row, compile_path(row.template)[0]) for row in rows())


def match(method: str, path: str) -> Match | None:
    """Find the row of a request; None where there is none.

    A slash too few or too many at the end is forgiven, as the application redirects there; HEAD stands for GET where it
    has no row.
    """
    for wanted in (method, "GET") if method == "HEAD" else (method,):
        for address in _spellings(path):
            for row, pattern in _patterns():
                found = pattern.match(address) if row.method == wanted else None
                if found:
                    return Match(row, found.groupdict())
    return None


def methods(path: str) -> list[str]:
    """Give the methods that an address has, none for an address that does not exist."""
    return sorted({row.method for row, pattern in _patterns() if any(map(pattern.match, _spellings(path)))})


def _spellings(path: str) -> tuple[str, ...]:
    return path, f"{path}/", path.rstrip("/")
