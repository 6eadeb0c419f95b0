"""Who sent a request: the holder of a token of the file, or a user of the realm."""

from typing import NamedTuple, Protocol

from lorkd_monailabel.front_door.realm import Realm
from lorkd_monailabel.front_door.roles import Role
from lorkd_monailabel.front_door.tokens import PREFIX, TokenFile


class User(NamedTuple):
    """Name and role."""

    name: str
    role: Role


class _Settings(Protocol):
    """MONAI Label's settings, as far as they concern the realm."""

    MONAI_LABEL_AUTH_ENABLE: bool
    MONAI_LABEL_AUTH_REALM_URI: str
    MONAI_LABEL_AUTH_TIMEOUT: int
    MONAI_LABEL_AUTH_TOKEN_USERNAME: str
    MONAI_LABEL_AUTH_TOKEN_ROLES: str
    MONAI_LABEL_AUTH_CLIENT_ID: str
    MONAI_LABEL_AUTH_ROLE_ADMIN: str
    MONAI_LABEL_AUTH_ROLE_REVIEWER: str
    MONAI_LABEL_AUTH_ROLE_ANNOTATOR: str
    MONAI_LABEL_AUTH_ROLE_USER: str


class Users:
    """Everyone who may use the server.

    Args:
        tokens: file of tokens, if there is one.
        realm: of JSON Web Tokens, if there is one.
    """

    def __init__(self, tokens: TokenFile | None, realm: Realm | None) -> None:
        self.tokens = tokens
        self.realm = realm

    @property
    def required(self) -> bool:
        """Whether a request needs a token."""
        return self.tokens is not None or self.realm is not None

    def user(self, authorization: str | None) -> User:
        """Give the user that a header ``Authorization`` names.

        Raises:
            PermissionError: there is no token, or nobody has it.
            ConnectionError: the realm can't be reached.
            ValueError: the file of tokens can't be read.
        """
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise PermissionError("the request has no token; send the header Authorization: Bearer TOKEN")
        if self.tokens and (token.startswith(PREFIX) or not self.realm):
            holder = self.tokens.holder(token)
            if holder is None:
                raise PermissionError("the token is unknown or was withdrawn; ask the administrator for a new one")
            return User(holder.name, holder.role)
        if self.realm is None:
            raise PermissionError("the token is unknown")
        return User(*self.realm.user(token))


def realm_of(settings: _Settings) -> Realm | None:
    """Make the realm that MONAI Label's settings name; None where they switch it off."""
    if not settings.MONAI_LABEL_AUTH_ENABLE:
        return None
    roles = {
        settings.MONAI_LABEL_AUTH_ROLE_USER: Role.VIEWER,
        settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR: Role.ANNOTATOR,
        settings.MONAI_LABEL_AUTH_ROLE_REVIEWER: Role.ANNOTATOR,
        "monailabel-trainer": Role.TRAINER,
        settings.MONAI_LABEL_AUTH_ROLE_ADMIN: Role.ADMIN,
    }
    return Realm(
        settings.MONAI_LABEL_AUTH_REALM_URI,
        client=settings.MONAI_LABEL_AUTH_CLIENT_ID,
        roles=roles,
        roles_at=settings.MONAI_LABEL_AUTH_TOKEN_ROLES,
        name_at=settings.MONAI_LABEL_AUTH_TOKEN_USERNAME,
        timeout=settings.MONAI_LABEL_AUTH_TIMEOUT,
    )
