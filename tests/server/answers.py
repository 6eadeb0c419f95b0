"""What the tests of the front door ask and judge with."""

import http.client
from urllib.parse import urlsplit


def raw(server, method, path, body=None, headers=None):
    """Send an address as it is: other clients straighten .. themselves."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    connection.putrequest(method, path, skip_accept_encoding=True)
    for key, value in {"Content-Length": str(len(body or b"")), **(headers or {})}.items():
        connection.putheader(key, value)
    connection.endheaders(body)
    reply = connection.getresponse()
    text = reply.read().decode("utf-8", "replace")
    connection.close()
    return reply.status, text


def refused(reply, status=400):
    assert reply.status_code == status, reply.text
    assert set(reply.json()) == {"detail", "request_id"}
    return reply.json()["detail"]
