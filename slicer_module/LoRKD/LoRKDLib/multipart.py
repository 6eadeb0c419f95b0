"""Bodies of several parts, as MONAI Label takes and gives them. Pure Python."""

import email.message
import email.parser
import json
import uuid
from typing import Any, NamedTuple


class Part(NamedTuple):
    """A file of a body: its bare name and its content."""

    name: str
    content: bytes


def composed(fields: dict[str, str], files: dict[str, Part]) -> tuple[str, bytes]:
    """Give the content type and the body of a form.

    Args:
        fields: name -> text.
        files: name -> file.
    """
    boundary = f"lorkd-{uuid.uuid4().hex}"
    pieces = []
    for name, text in fields.items():
        pieces += [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n', text, "\r\n"]
    body = "".join(pieces).encode()
    for name, part in files.items():
        quoted = part.name.replace('"', "%22").replace("\r", " ").replace("\n", " ")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{quoted}"\r\n'
        body += f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + part.content + b"\r\n"
    return f"multipart/form-data; boundary={boundary}", body + f"--{boundary}--\r\n".encode()


def parsed(content_type: str, body: bytes) -> tuple[dict[str, Any], Part | None]:
    """Give the JSON and the file of an answer to an inference; a server that has no file answers with JSON alone.

    Raises:
        ValueError: the body is cut off, or is something else.
    """
    if content_type.startswith("application/json"):
        return json.loads(body) or {}, None
    about = email.message.Message()
    about["Content-Type"] = content_type
    boundary = about.get_boundary()
    if about.get_content_maintype() != "multipart" or not boundary:
        raise ValueError(f"the answer is {content_type or 'of no type'}, not a form")
    pieces = (b"\r\n" + body).split(f"\r\n--{boundary}".encode())
    if len(pieces) < 3 or not pieces[-1].startswith(b"--"):
        raise ValueError("the answer is cut off")
    params: dict[str, Any] = {}
    file = None
    for piece in pieces[1:-1]:
        head, _, content = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        headers = email.parser.BytesHeaderParser().parsebytes(head + b"\r\n\r\n")
        if headers.get_filename():
            file = Part(bare_name(headers.get_filename() or ""), content)
        elif headers.get_param("name", header="content-disposition") == "params":
            params = json.loads(content) or {}
    return params, file


def file_name(disposition: str) -> str:
    """Give the bare name in a Content-Disposition header; empty where there is none."""
    about = email.message.Message()
    about["Content-Disposition"] = disposition
    return bare_name(about.get_filename() or "")


def bare_name(name: str) -> str:
    """Give the last piece of a file's name: a server must not choose the folder that it is written to."""
    last = name.replace("\\", "/").rpartition("/")[2].replace("\0", "")
    return "" if last in (".", "..") else last
