"""Bodies of several parts, as MONAI Label takes and gives them. Pure Python."""

import email
import json
import re
import uuid
from typing import Any


def composed(params: dict[str, Any], **files: tuple[str, bytes]) -> tuple[bytes, str]:
    """Give a form as its body and content type: ``params`` as JSON, and files with their names."""
    boundary = f"lorkd-{uuid.uuid4().hex}"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="'
    body = f'{head}params"\r\n\r\n{json.dumps(params)}\r\n'.encode()
    for field, (name, content) in files.items():
        name = re.sub(r'["\r\n]', "_", name)
        body += f'{head}{field}"; filename="{name}"\r\nContent-Type: application/octet-stream\r\n\r\n'.encode()
        body += content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def parsed(body: bytes) -> tuple[dict[str, Any], str, bytes]:
    """Give the JSON of an answer to an inference, and the name and content of its file, which may have neither.

    Raises:
        ValueError: the body is cut off, or is something else.
    """
    boundary = body.partition(b"\r\n")[0]
    if not boundary.startswith(b"--"):
        return json.loads(body) or {}, "", b""
    *pieces, end = (b"\r\n" + body).split(b"\r\n" + boundary)
    if not end.startswith(b"--"):
        raise ValueError("the answer is cut off")
    params: dict[str, Any] = {}
    name, found = "", b""
    for piece in pieces[1:]:
        head, _, content = piece.partition(b"\r\n\r\n")
        headers = email.message_from_bytes(head.lstrip())
        if headers.get_filename():
            name, found = str(headers.get_filename()), content
        elif headers.get_param("name", header="content-disposition") == "params":
            params = json.loads(content) or {}
    return params, name, found


def suffix(name: str) -> str:
    """Give the one or two suffixes of a file's name or of a header that ends in it.

    They are letters and digits: a server chooses how a file is read, never where it is written.
    """
    found = re.search(r'((?:\.\w{1,9}){1,2})"?\s*$', name)
    return found[1] if found else ""
