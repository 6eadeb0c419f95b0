"""Middleware: who may do what. It stands before every route; what the table of roles lacks is not served."""

import ipaddress
from urllib.parse import urlsplit

import anyio.to_thread
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lorkd_monailabel.front_door.errors import answer
from lorkd_monailabel.front_door.roles import Role, match, methods
from lorkd_monailabel.front_door.users import User, Users
from lorkd_monailabel.front_door.visits import visit

SAFE = ("GET", "HEAD", "OPTIONS")


class Refused(Exception):
    """The request goes no further.

    Args:
        status: of the answer.
        detail: one sentence.
        headers: of the answer.
    """

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers


class Access:
    """Middleware: finds the route and the user of a request, and refuses it or notes both in its visit.

    Args:
        app: the application behind it.
        users: who may use the server.
        open: whether other machines are served without tokens.
        origins: web pages that may use the server from a browser.
        prefix: of all routes of the application.
    """

    def __init__(
        self, app: ASGIApp, *, users: Users, open: bool = False, origins: tuple[str, ...] = (), prefix: str = ""
    ) -> None:
        self.app = app
        self.users = users
        self.open = open
        self.origins = origins
        self.prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 401, 403, 404 or 405 itself, or passes the request on."""
        if scope["type"] == "http":
            try:
                await self._admit(scope)
            except Refused as refusal:
                response = answer(refusal.status, refusal.detail, refusal.headers)
                return await response(scope, receive, send)
        await self.app(scope, receive, send)

    async def _admit(self, scope: Scope) -> None:
        headers, here = Headers(scope=scope), visit()
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")).removeprefix(self.prefix) or "/"
        found = match(scope["method"], path)
        if found is None:
            known = methods(path)
            if known:
                allow = ", ".join(known)
                raise Refused(405, f"{scope['method']} is not possible here; use {allow}", {"Allow": allow})
            raise Refused(404, "there is nothing at this address; / lists what there is")
        here.route, here.parameters = found.row.template, found.parameters
        self._check_origin(scope["method"], headers)
        user = await self._user(scope, headers, found.row.role)
        here.user, here.role = user
        if user.role < found.row.role:
            wanted = found.row.role.name.lower()
            raise Refused(403, f"this needs the role {wanted}, and {user.name or 'a guest'} has not got it")

    def _check_origin(self, method: str, headers: Headers) -> None:
        """A page of another site must not change anything, though a browser lets it send some requests."""
        origin = headers.get("origin")
        if method in SAFE or origin is None or origin in self.origins:
            return
        if urlsplit(origin).netloc != headers.get("host"):
            raise Refused(403, "pages of other sites may not use this server; name the site with --conf origins")

    async def _user(self, scope: Scope, headers: Headers, needed: Role) -> User:
        if not self.users.required:
            return self._guest(scope, headers, needed)
        if needed is Role.ANYONE:
            return User("", Role.ANYONE)
        try:
            if self.users.realm is None:  # a look into a file is quicker than another thread
                return self.users.user(headers.get("authorization"))
            return await anyio.to_thread.run_sync(self.users.user, headers.get("authorization"))
        except PermissionError as error:
            raise Refused(401, str(error), {"WWW-Authenticate": "Bearer"}) from error
        except ConnectionError as error:
            raise Refused(503, str(error)) from error
        except ValueError as error:
            raise Refused(503, "the server's tokens can't be read; tell its administrator") from error

    def _guest(self, scope: Scope, headers: Headers, needed: Role) -> User:
        """Without tokens, whoever sits at this machine may do everything; others only if the operator says so."""
        if needed is Role.ANYONE:
            return User("", Role.ANYONE)
        if is_loopback((scope.get("server") or ("",))[0]):
            if self.open or is_loopback(urlsplit(f"//{headers.get('host', '')}").hostname or ""):
                return User("", Role.ADMIN)
            raise Refused(403, "without tokens this server answers to localhost only; start it with tokens")
        if self.open:
            return User("", Role.TRAINER)
        raise Refused(403, "without tokens this server serves its own machine only; start it with tokens or --open")


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"
