"""Every route of the application has a role, and a request finds it."""

import pytest
from fastapi.routing import iter_route_contexts

from lorkd_monailabel.front_door.roles import ROLES, Role, match, methods, rows


@pytest.fixture(scope="module")
def app():
    """The application with everything that an operator can switch on."""
    from monailabel.config import settings

    settings.MONAI_LABEL_APP_CONF = {"allow": "proxy,models,reload"}
    from lorkd_monailabel.asgi import app

    return app


def test_every_route_has_one_row(app):
    routes = {
        (method, context.path)
        for context in iter_route_contexts(app.routes)
        for method in getattr(context, "methods", None) or ()
    }
    table = {(row.method, row.template) for row in rows()}
    assert len(routes) > 45
    assert sorted(routes - table - {("HEAD", "/openapi.json"), ("HEAD", "/docs")}) == []
    assert len(table) == len(rows())


def test_mounted_folders_are_in_the_table(app):
    mounted = {f"{route.path}/{{path:path}}" for route in app.routes if type(route).__name__ == "Mount"}
    assert mounted == {"/static/{path:path}"}
    assert mounted <= {row.template for row in rows()}


@pytest.mark.parametrize(
    ("method", "path", "role", "parameters"),
    [
        ("GET", "/lorkd/health", Role.ANYONE, {}),
        ("GET", "/info", Role.VIEWER, {}),
        ("GET", "/batch/infer/", Role.VIEWER, {}),
        ("POST", "/infer/lorkd", Role.VIEWER, {"model": "lorkd"}),
        ("PUT", "/datastore/label", Role.ANNOTATOR, {}),
        ("POST", "/train/abdomen", Role.TRAINER, {"model": "abdomen"}),
        ("DELETE", "/datastore/image", Role.ADMIN, {}),
        ("GET", "/logs/", Role.ADMIN, {}),
        ("HEAD", "/openapi.json", Role.ANYONE, {}),
    ],
)
def test_rows_of_requests(method, path, role, parameters):
    found = match(method, path)
    assert (found.row.role, found.parameters) == (role, parameters)


def test_what_has_no_row():
    assert match("GET", "/nothing") is None
    assert methods("/nothing") == []
    assert match("PATCH", "/info/") is None
    assert methods("/info/") == ["GET"]
    assert match("GET", "/infer/a/b/c") is None


def test_roles_in_their_order():
    assert list(ROLES) == ["viewer", "annotator", "trainer", "admin"]
    assert sorted(ROLES.values()) == list(ROLES.values())
