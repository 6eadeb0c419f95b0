"""Send hostile and malformed requests to a server of our own, and see that it stands.

    python -m train.bench.hostile [--quick] [--requests 10000] [--minutes 60]

The requests are a table (``attacks.py``) and what schemathesis makes out of the server's OpenAPI document, right and
wrong. It passes if no answer is 5xx, each refusal is our JSON, no file outside the server's folders is new or changed,
none that lies there is told, and the server lives. Nothing but this machine is ever addressed.
"""

import argparse
import http.client
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from train.bench.attacks import Attack, attacks
from train.bench.sandbox import SECRET, Sandbox, sandbox

REQUESTS = 10_000
QUICK = 200
SHOWN = 20


@dataclass
class Tally:
    """What came of the requests.

    Attributes:
        end: time at which no more are sent.
        statuses: answers by status.
        problems: sentences.
    """

    end: float
    statuses: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def sent(self) -> int:
        """Number of requests that were answered."""
        return sum(self.statuses.values())

    def note(self, what: str, status: int, headers: dict[str, str], body: bytes) -> None:
        """Judge an answer."""
        self.statuses[status] += 1
        if status >= 500:
            self.problems.append(f"{what} got {status}: {body[:200]!r}")
        if SECRET in body:
            self.problems.append(f"{what} told what lies in a file outside")
        if status in (400, 401, 403, 404, 405, 409, 413, 422, 429) and "x-request-id" in headers:
            try:
                told = set(json.loads(body)) if body else {"detail", "request_id"}
            except ValueError:
                told = set()
            if told != {"detail", "request_id"}:
                self.problems.append(f"{what} got {status} in another form: {body[:200]!r}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status: 1 where the server did not stand."""
    parser = argparse.ArgumentParser(
        prog="train.bench.hostile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"most of them (default {REQUESTS})")
    parser.add_argument("--minutes", type=float, default=60, help="longest time (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default 0)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} requests")
    options = parser.parse_args(argv)
    try:
        if options.requests < 10 or options.minutes <= 0:
            raise ValueError(f"{options.requests} requests in {options.minutes} minutes try nothing; ask for more")
        count = min(QUICK, options.requests) if options.quick else options.requests
        with tempfile.TemporaryDirectory(prefix="lorkd-hostile-") as folder:
            with sandbox(Path(folder), [("small", 20), ("other", 24)]) as server:
                problems = try_hard(server, count, minutes=options.minutes, seed=options.seed)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    for problem in problems[:SHOWN]:
        print(f"problem  {problem}")
    print(f"{len(problems)} problems" if problems else "the server stands")
    return 1 if problems else 0


def try_hard(server: Sandbox, count: int, *, minutes: float, seed: int) -> list[str]:
    """Send the requests.

    Args:
        server: of our own.
        count: of the requests, up to half of them from the table.
        minutes: after which no more are sent.
        seed: of what is drawn.

    Returns:
        What went wrong.
    """
    tally = Tally(time.monotonic() + minutes * 60)
    before = server.outside()
    table = list(attacks(server.folder))
    random.Random(seed).shuffle(table)
    for attack in table[: count // 2]:
        send(server, attack, tally)
    of_table = tally.sent
    while tally.sent < count and time.monotonic() < tally.end:  # some operations have less to vary than others
        so_far, seed = tally.sent, seed + 1
        explore(server, count, tally, seed=seed)
        if tally.sent == so_far:
            break
    after = server.outside()
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    tally.problems += [f"{path} is new, changed or gone" for path in sorted(changed)]
    if not server.alive():
        tally.problems.append(f"the server does not answer any more; status {server.process.poll()}")
    counts = ", ".join(f"{number} x {status}" for status, number in sorted(tally.statuses.items()))
    print(f"{tally.sent} requests, {of_table} of the table: {counts}")
    return tally.problems


def send(server: Sandbox, attack: Attack, tally: Tally) -> None:
    """Send a request of the table as it stands; no client straightens it."""
    if time.monotonic() > tally.end:
        return
    connection = http.client.HTTPConnection(urlsplit(server.address).netloc, timeout=120)
    what = f"{attack.method} {attack.path[:120]}"
    try:
        connection.putrequest(attack.method, _sendable(attack.path), skip_host="Host" in attack.headers)
        connection.putheader("Content-Length", str(len(attack.body)))
        for key, value in attack.headers.items():
            connection.putheader(key, value)
        connection.endheaders(attack.body)
        reply = connection.getresponse()
        headers = {key.lower(): value for key, value in reply.getheaders()}
        tally.note(what, reply.status, headers, reply.read())
    except (BrokenPipeError, ConnectionResetError):  # it may refuse a large body before it has read it
        tally.statuses[413] += 1
    except (http.client.HTTPException, OSError) as error:
        tally.problems.append(f"{what} got no answer: {error!r}")
    finally:
        connection.close()


def _sendable(path: str) -> str:
    """Leave out what http.client itself refuses to send."""
    return "".join(letter for letter in path if letter.isascii() and letter.isprintable() and letter != " ")


def explore(server: Sandbox, count: int, tally: Tally, *, seed: int) -> None:
    """Send what schemathesis makes of each operation of the OpenAPI document: half of it right, half wrong.

    Args:
        server: of our own.
        count: of all requests, those that were sent before with them.
        tally: of them.
        seed: of what is drawn.

    Raises:
        ValueError: schemathesis is not installed.
    """
    try:
        import hypothesis
        import requests
        import schemathesis
    except ImportError as error:
        raise ValueError("schemathesis is not installed; run: pip install 'lorkd-monailabel[dev]'") from error
    schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
    operations: list[Any] = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
    each = max(1, (count - tally.sent) // (2 * len(operations)))
    settings = hypothesis.settings(
        max_examples=each,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    for operation in operations:
        for mode in schemathesis.GenerationMode:
            if time.monotonic() > tally.end or tally.sent >= count:
                return

            @hypothesis.seed(seed)
            @settings
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def request(case: Any) -> None:
                if time.monotonic() > tally.end or tally.sent >= count:
                    return
                what = f"{case.method} {case.formatted_path[:120]}"
                try:
                    reply = case.call(timeout=120)
                except (requests.ConnectionError, requests.Timeout) as error:
                    tally.problems.append(f"{what} got no answer: {error!r}")
                except requests.RequestException:  # what requests itself refuses to send
                    pass
                else:
                    headers = {key.lower(): value[0] for key, value in reply.headers.items()}
                    tally.note(what, reply.status_code, headers, reply.content)

            try:
                request()
            except hypothesis.errors.Unsatisfiable:  # nothing can be wrong with a request without parameters
                continue


if __name__ == "__main__":
    raise SystemExit(main())
