"""Bearer tokens in a file: a name, a role and the SHA-256 of each. The token itself is shown once and kept nowhere.

A token has 256 random bits, so that a plain hash is enough: there is nothing to guess.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lorkd_monailabel.drafts import draft_of
from lorkd_monailabel.front_door.roles import ROLES, Role

PREFIX = "lorkd_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")


class Holder(NamedTuple):
    """Whose a token is."""

    name: str
    role: Role
    sha256: str
    made: str


class TokenFile:
    """The tokens of a file that is read again whenever it changes, so that a token is withdrawn at once.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self._holders: Sequence[Holder] = ()

    def holder(self, token: str) -> Holder | None:
        """Tell whose a token is; None for an unknown one. It takes as long for a right as for a wrong one.

        Raises:
            ValueError: the file can't be read.
        """
        digest = hashlib.sha256(token.encode()).hexdigest()
        found = None
        for each in self.holders():
            if hmac.compare_digest(each.sha256, digest):
                found = each
        return found

    def holders(self) -> Sequence[Holder]:
        """Give all holders.

        Raises:
            ValueError: the file is missing, damaged, or others may write it.
        """
        try:
            about = self.path.stat()
            seen = (about.st_mtime_ns, about.st_size, about.st_ino)
            if seen != self._seen:
                if os.name == "posix" and about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                    raise ValueError(f"others may write {self.path}; run: chmod 600 {self.path}")
                self._holders = _read(self.path)
                self._seen = seen
        except OSError as error:
            raise ValueError(
                f"tokens {self.path} can't be read ({error.strerror}); make it: lorkd tokens add NAME --role ROLE"
            ) from error
        return self._holders


def add(path: Path, name: str, role: str) -> str:
    """Add a token to a file, which is made where there is none, and return it.

    Raises:
        ValueError: the name is taken or no name, the role is unknown, or the file is damaged.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"name {name!r} must be up to 64 letters, digits and _ . @ -; choose such a one")
    if role not in ROLES:
        raise ValueError(f"role {role!r} is unknown; choose one of {', '.join(ROLES)}")
    holders = list(TokenFile(path).holders()) if path.exists() else []
    if name in {each.name for each in holders}:
        raise ValueError(f"{name} has a token already; withdraw it first: lorkd tokens remove {name}")
    token = PREFIX + secrets.token_urlsafe(32)
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    _write(path, [*holders, Holder(name, ROLES[role], hashlib.sha256(token.encode()).hexdigest(), made)])
    return token


def remove(path: Path, name: str) -> None:
    """Withdraw a token.

    Raises:
        ValueError: nobody has that name.
    """
    holders = TokenFile(path).holders()
    if name not in {each.name for each in holders}:
        have = ", ".join(each.name for each in holders) or "nobody"
        raise ValueError(f"{name!r} has no token in {path} (there: {have})")
    _write(path, [each for each in holders if each.name != name])


def _read(path: Path) -> list[Holder]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["tokens"]
        return [Holder(each["name"], ROLES[each["role"]], each["sha256"], each["made"]) for each in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"tokens {path} is damaged ({error!r}); make it anew with lorkd tokens add") from error


def _write(path: Path, holders: Sequence[Holder]) -> None:
    entries = [{**each._asdict(), "role": each.role.name.lower()} for each in holders]
    path.parent.mkdir(parents=True, exist_ok=True)
    with draft_of(path) as draft:
        draft.touch(mode=0o600)
        draft.write_text(json.dumps({"tokens": entries}, indent=1), encoding="utf-8")
