"""JSON Web Tokens of a Keycloak realm, set up with MONAI Label's own ``MONAI_LABEL_AUTH_*`` variables.

MONAI Label 0.8.5 refuses every token, as it names no algorithms, and would keep the realm's first key for ever.
"""

import threading
from collections.abc import Mapping
from typing import Any

import jwt
import requests

from lorkd_monailabel.front_door.roles import Role

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures with a private key only: a public key must never be taken for a shared secret."""

KEYS_LIVE_SECONDS = 300
LEEWAY_SECONDS = 10


class Realm:
    """What checks a realm's tokens.

    Args:
        uri: of the realm, such as ``https://keycloak.example/realms/hospital``; it is the issuer of the tokens.
        client: id of this server there; a token must be made for it (``aud``) or by it (``azp``).
        roles: names of the realm's roles and what they stand for.
        roles_at: where in a token its roles stand, levels separated by ``#``.
        name_at: where in a token the user's name stands.
        timeout: seconds for a request to the realm.
        pause: seconds between two fetches of its keys for tokens whose key is not known.
    """

    def __init__(
        self,
        uri: str,
        *,
        client: str,
        roles: Mapping[str, Role],
        roles_at: str = "realm_access#roles",
        name_at: str = "preferred_username",
        timeout: float = 10,
        pause: float = 30,
    ) -> None:
        self.uri = uri.rstrip("/")
        self.client = client
        self.roles = roles
        self.roles_at = roles_at.split("#")
        self.name_at = name_at
        self.timeout = timeout
        self.pause = pause
        self._keys: jwt.PyJWKClient | None = None
        self._lock = threading.Lock()

    def user(self, token: str) -> tuple[str, Role]:
        """Give the name and the role of a token's user; the role is ``ANYONE`` where the realm gave none.

        Raises:
            PermissionError: the token is not valid here.
            ConnectionError: the realm can't be reached.
        """
        try:
            key = self._key_client().get_signing_key_from_jwt(token)
            claims = jwt.decode(
                token,
                key.key,
                algorithms=list(ALGORITHMS),
                issuer=self.uri,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss"], "verify_aud": False},
            )
        except (jwt.PyJWKClientConnectionError, requests.RequestException) as error:
            raise ConnectionError("the realm that signs tokens can't be reached; try again later") from error
        except (jwt.PyJWTError, ValueError) as error:
            raise PermissionError(f"the token is not valid ({type(error).__name__}); sign in again") from error
        audience = claims.get("aud", [])
        audience = [audience] if isinstance(audience, str) else audience
        if self.client not in audience and claims.get("azp") != self.client:
            raise PermissionError(f"the token is made for another service than {self.client}; sign in here")
        return str(claims.get(self.name_at) or claims.get("sub", "")), self._role(claims)

    def token(self, name: str, password: str) -> dict[str, Any]:
        """Fetch a token for a name and a password.

        Raises:
            PermissionError: the realm refuses.
            ConnectionError: the realm can't be reached.
        """
        form = {"client_id": self.client, "username": name, "password": password, "grant_type": "password"}
        try:
            reply = requests.post(self._about()["token_endpoint"], data=form, timeout=self.timeout)
            if reply.status_code >= 500:
                reply.raise_for_status()
            answer: dict[str, Any] = reply.json()
        except (requests.RequestException, KeyError) as error:
            raise ConnectionError("the realm that signs tokens can't be reached; try again later") from error
        if "access_token" not in answer:
            raise PermissionError("the realm does not know this name with this password")
        return {"access_token": answer["access_token"], "token_type": answer.get("token_type", "bearer")}

    def _about(self) -> dict[str, Any]:
        reply = requests.get(f"{self.uri}/.well-known/openid-configuration", timeout=self.timeout)
        reply.raise_for_status()
        about: dict[str, Any] = reply.json()
        return about

    def _key_client(self) -> jwt.PyJWKClient:
        with self._lock:
            if self._keys is None:
                uri = self._about().get("jwks_uri", f"{self.uri}/protocol/openid-connect/certs")
                self._keys = jwt.PyJWKClient(
                    uri, lifespan=KEYS_LIVE_SECONDS, timeout=self.timeout, cooldown_duration=self.pause
                )
            return self._keys

    def _role(self, claims: dict[str, Any]) -> Role:
        names: Any = claims
        for level in self.roles_at:
            names = names.get(level, ()) if isinstance(names, dict) else ()
        return max((self.roles[name] for name in names if name in self.roles), default=Role.ANYONE)
