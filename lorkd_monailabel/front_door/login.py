"""Sign-in as MONAI Label's clients know it: ``/auth/``. With tokens of a file, the token is the password."""

from typing import Any

from fastapi import APIRouter, Form, HTTPException
from pydantic import BaseModel, Field

from lorkd_monailabel.front_door.users import Users
from lorkd_monailabel.front_door.visits import visit


class SignIn(BaseModel):
    """What a client learns before it signs in."""

    enabled: bool = Field(description="whether a token is needed")
    client_id: str = Field(description="this server's id in the realm; empty without one")
    realm: str = Field(description="address of the realm; empty without one")


class Bearer(BaseModel):
    """A token."""

    access_token: str | None = Field(description="to send as `Authorization: Bearer`; null where none is needed")
    token_type: str | None = Field(description="always bearer")


class Account(BaseModel):
    """Whose the token is."""

    username: str
    role: str = Field(description="viewer, annotator, trainer or admin")


def login_router(users: Users) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/auth", tags=["Auth"])

    @router.get("/", summary="Whether a token is needed")
    def enabled() -> SignIn:
        realm = users.realm
        return SignIn(enabled=users.required, client_id=realm.client if realm else "", realm=realm.uri if realm else "")

    @router.post("/token", summary="A token for a name and a password (with tokens of a file, the token itself)")
    def token(username: str = Form(""), password: str = Form("")) -> Bearer:
        if not users.required:
            return Bearer(access_token=None, token_type=None)
        try:
            if users.realm and not password.startswith("lorkd_"):
                return Bearer(**users.realm.token(username, password))
            if users.user(f"Bearer {password}").name != username:
                raise PermissionError("name and token do not belong together")
        except PermissionError as error:
            raise HTTPException(401, str(error)) from error
        except ConnectionError as error:
            raise HTTPException(503, str(error)) from error
        return Bearer(access_token=password, token_type="bearer")

    @router.get("/token/valid", summary="Whose the token of this request is")
    def valid() -> Account:
        return Account(username=visit().user, role=visit().role.name.lower())

    return router


def override_user(app: Any) -> None:
    """Let MONAI Label's endpoints see the user that the front door found; its own check of roles passes."""
    from monailabel.config import settings
    from monailabel.endpoints.user.auth import User, get_current_user

    roles = [
        settings.MONAI_LABEL_AUTH_ROLE_ADMIN,
        settings.MONAI_LABEL_AUTH_ROLE_REVIEWER,
        settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR,
        settings.MONAI_LABEL_AUTH_ROLE_USER,
    ]

    def user() -> Any:
        return User(username=visit().user or "guest", roles=roles)

    app.dependency_overrides[get_current_user] = user
