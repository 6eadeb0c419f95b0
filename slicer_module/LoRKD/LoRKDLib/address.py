"""Addresses of servers as people type them. Pure Python."""

from urllib.parse import urlsplit

DEFAULT = "http://127.0.0.1:8000"
_PORT = 8000


def server_url(text: str) -> str:
    """Give the address that is meant: a scheme and MONAI Label's port are added where they are missing.

    Args:
        text: such as ``:8000``, ``host``, ``host:8000`` or ``https://host/path/``; empty for this machine.

    Raises:
        ValueError: it can be no address of a server.
    """
    if not text.strip():
        return DEFAULT
    typed = text.strip().rstrip("/")
    bare = "://" not in text
    url = f"http://{'127.0.0.1' if typed.startswith(':') else ''}{typed}" if bare else typed
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(typed) from error
    good = parts.scheme in ("http", "https") and parts.hostname and not parts.username and not parts.query
    if not good or any(character.isspace() or ord(character) < 32 for character in url):
        raise ValueError(typed)
    if bare and port is None:
        return f"http://{parts.netloc}:{_PORT}{parts.path}"
    return url
