"""Who is given an image, or sends one, will ask about it: it is read while the client looks at it."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any


def foresee(datastore: Any, session: Any) -> None:
    """Let the app know of images that are downloaded, and of those that come with a session.

    Args:
        datastore: MONAI Label's module of that name.
        session: its module of that name.
    """
    _tell_of(datastore, "download_image", lambda response: getattr(response, "path", None))  # a mere check gives none
    _tell_of(session, "create_session", _of_session)


def tell(image: str | Path) -> None:
    """Let the app know of an image that it will be asked about."""
    from monailabel.interfaces.utils.app import app_instance

    known = getattr(app_instance(), "foresee", None)  # MONAI Label can be given any app
    if known:
        known(image)


def _tell_of(module: Any, name: str, image: Callable[[Any], str | None]) -> None:
    function = getattr(module, name)

    @functools.wraps(function)
    def run(*positional: Any, **named: Any) -> Any:
        result = function(*positional, **named)
        path = image(result)
        if path:
            tell(path)
        return result

    setattr(module, name, run)


def _of_session(created: dict[str, Any]) -> str | None:
    from monailabel.interfaces.utils.app import app_instance

    found = app_instance().sessions().get_session(created["session_id"])
    return found.image if found else None
