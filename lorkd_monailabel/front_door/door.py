"""Puts the front door together: MONAI Label's application with ours around it."""

import contextlib
import io
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from lorkd_monailabel.compat import allow_pydicom_3
from lorkd_monailabel.front_door import logs
from lorkd_monailabel.front_door.access import Access
from lorkd_monailabel.front_door.bodies import Bodies
from lorkd_monailabel.front_door.errors import add_error_handlers
from lorkd_monailabel.front_door.foresight import foresee
from lorkd_monailabel.front_door.guards import guard_all
from lorkd_monailabel.front_door.login import login_router, override_user
from lorkd_monailabel.front_door.offload import offload, offload_inference
from lorkd_monailabel.front_door.options import DoorOptions, door_options
from lorkd_monailabel.front_door.proxy import proxied
from lorkd_monailabel.front_door.record import Record
from lorkd_monailabel.front_door.stock import take_places
from lorkd_monailabel.front_door.tokens import TokenFile
from lorkd_monailabel.front_door.users import Users, realm_of

SWITCH_SECONDS = 0.0005
"""After which a thread that computes in Python lets another one have its turn; Python's own 5 ms would be felt by every
request at each of the steps that it takes while an inference runs."""

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Any]]


def build(routers: Iterable[APIRouter] = (), *, prefix: str = "") -> FastAPI:
    """Make the application that uvicorn serves. MONAI Label has one in a process, so this is called once.

    Args:
        routers: of our own routes.
        prefix: of their addresses.

    Raises:
        ValueError: a ``--conf`` key is not usable, or the file of tokens can't be read.
    """
    allow_pydicom_3()
    from monailabel.config import settings

    options = door_options(settings.MONAI_LABEL_APP_CONF)
    origins = options.origins or tuple(str(each).rstrip("/") for each in settings.MONAI_LABEL_CORS_ORIGINS)
    users = Users(TokenFile(options.tokens) if options.tokens else None, realm_of(settings))
    if users.tokens:
        users.tokens.holders()
    app = _monai_labels(options)
    everywhere = settings.MONAI_LABEL_API_STR
    app.include_router(login_router(users), prefix=everywhere)
    for router in routers:
        app.include_router(router, prefix=everywhere + prefix)
    override_user(app)
    add_error_handlers(app)
    app.router.lifespan_context = _with_ours(app.router.lifespan_context)
    # what MONAI Label puts here lets every page of the web in
    app.user_middleware[:] = [
        Middleware(Record),
        *_cors(origins),
        Middleware(Access, users=users, open=options.open, origins=origins, prefix=everywhere),
        Middleware(Bodies, upload_bytes=options.upload_bytes, params_bytes=options.params_bytes),
    ]
    return app


def _monai_labels(options: DoorOptions) -> FastAPI:
    """Import MONAI Label's application after its endpoints were changed, for it takes them over as they are."""
    from monailabel.config import settings
    from monailabel.endpoints import (
        activelearning,
        batch_infer,
        datastore,
        infer,
        info,
        logs,
        model,
        proxy,
        scoring,
        session,
        train,
        wsi_infer,
    )

    guarded = (activelearning, batch_infer, datastore, infer, model, scoring, session, train, wsi_infer)
    guard_all({module.__name__.rpartition(".")[2]: module for module in guarded}, options)
    foresee(datastore, session)
    take_places(logs.router, model, train)
    proxy.proxy_dicom = proxied
    for endpoints in (infer, wsi_infer):
        offload_inference(endpoints.router)
    for endpoints in (activelearning, batch_infer, datastore, info, logs, model, scoring, session, train):
        offload(endpoints.router)
    if "proxy" not in options.allow:
        proxy.router.routes.clear()
    if "models" not in options.allow:
        model.router.routes[:] = [route for route in model.router.routes if not route.methods & {"PUT", "DELETE"}]
    settings.MONAI_LABEL_AUTH_ENABLE, enabled = False, settings.MONAI_LABEL_AUTH_ENABLE  # our own sign-in stands there
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of origins that are not let in
        from monailabel.app import app

    settings.MONAI_LABEL_AUTH_ENABLE = enabled
    if "reload" not in options.allow:
        app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) != "/reload"]
    made: FastAPI = app
    return made


def _cors(origins: tuple[str, ...]) -> list[Middleware]:
    if not origins:
        return []
    methods = ["GET", "HEAD", "POST", "PUT", "DELETE"]
    headers = ["Authorization", "Content-Type"]
    return [Middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=methods, allow_headers=headers)]


def _with_ours(lifespan: Lifespan) -> Lifespan:
    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[Any]:
        logs.install()
        sys.setswitchinterval(SWITCH_SECONDS)
        async with lifespan(app) as state:
            yield state

    return run
