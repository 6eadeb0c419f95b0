"""``lorkd serve``: MONAI Label's server with our app and front door, in the place of this process."""

import argparse
import importlib.metadata
import importlib.util
import ipaddress
import os
import socket
import ssl
import subprocess
import sys
import sysconfig
from pathlib import Path

from lorkd_monailabel.commands.options import APP, SERVERS_STORE, Subparsers, add_device, store_folder
from lorkd_monailabel.commands.tokens import SERVERS_TOKENS
from lorkd_monailabel.front_door.tokens import TokenFile

ANYWHERE = ("0.0.0.0", "::")
WORK_MAIN = """from lorkd_monailabel.compat import allow_pydicom_3

allow_pydicom_3()

from lorkd_monailabel.app import LoRKDApp
"""


def add_to(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser("serve", help="start the server for 3D Slicer", description=__doc__)
    parser.add_argument("studies", metavar="STUDIES", help="folder of the images, or a DICOMweb address")
    parser.add_argument(
        "--store",
        type=Path,
        metavar="FOLDER",
        help=f"folder of bases and experts (default: {SERVERS_STORE}, at first a copy of the shipped store)",
    )
    add_device(parser)
    parser.add_argument(
        "--foundation", type=Path, metavar="FILE", help="of the train task decompose (default: there is no such task)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000")
    parser.add_argument(
        "--tokens", type=Path, metavar="FILE", help=f"of lorkd tokens (default: {SERVERS_TOKENS}, where it exists)"
    )
    parser.add_argument("--open", action="store_true", help="serve other machines without tokens")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate (PEM): serve by https")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key (PEM, without a password)")
    parser.add_argument(
        "--conf", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="further options of the app"
    )
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="what the server writes (default: the app's own)")
    parser.add_argument("--plain", action="store_true", help="MONAI Label's own application, without the front door")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check what can be checked, print the address, and become the server.

    Raises:
        ValueError: MONAI Label is missing, or the device, the host, the port or a file can't be used.
        OSError: studies, store or a file are missing.
    """
    check_installed(plain=arguments.plain)
    studies = checked_studies(arguments.studies)
    store = None if arguments.store is None else store_folder(arguments.store).resolve()
    check_port(arguments.host, arguments.port)
    tokens = checked_tokens(arguments)
    tls = checked_tls(arguments.tls_cert, arguments.tls_key)
    if arguments.device:
        from lorkd_monailabel.devices import checked_device

        checked_device(arguments.device)
    if arguments.foundation is not None and not arguments.foundation.is_file():
        raise FileNotFoundError(f"foundation {arguments.foundation} is not a file that exists; check --foundation")
    app = APP if arguments.work is None else work_folder(arguments.work)
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", studies]
    command += ["--host", arguments.host, "--port", str(arguments.port)]
    command += [] if store is None else ["--conf", "store", str(store)]
    command += ["--conf", "device", arguments.device] if arguments.device else []
    command += ["--conf", "foundation", str(arguments.foundation.resolve())] if arguments.foundation else []
    command += ["--conf", "tokens", str(tokens)] if tokens else []
    command += ["--conf", "open", "true"] if arguments.open and not arguments.plain else []
    command += [part for key, value in arguments.conf for part in ("--conf", key, value)]
    command += tls
    command += [] if arguments.plain else ["--uvicorn_app", "lorkd_monailabel.asgi:app"]
    print(f"studies {studies}, store {store or app / 'model' / 'store'}")
    print(f"paste into Slicer: {address(arguments.host, arguments.port, tls=bool(tls))}   (Ctrl+C stops the server)")
    if tokens:
        print("Slicer asks for a user name and a password: the name and the token of lorkd tokens add")
    sys.stdout.flush()
    if not is_loopback(arguments.host) and not secured(tokens):
        print("lorkd: whoever reaches this address can read the studies; be sure of the network", file=sys.stderr)
    elif not is_loopback(arguments.host) and not tls:
        print(
            "lorkd: tokens and images go over the network unencrypted; give --tls-cert and --tls-key", file=sys.stderr
        )
    return become(command, environment(app))


def checked_tokens(arguments: argparse.Namespace) -> Path | None:
    """Give the file of tokens, after a look into it; None where there is none.

    Raises:
        ValueError: it can't be read, or other machines would be served without tokens though nobody asked for it.
    """
    if arguments.plain:
        if arguments.tokens or arguments.tls_key or not (is_loopback(arguments.host) or arguments.open):
            raise ValueError("--plain has no tokens; serve this machine only, or omit --plain (or add --open)")
        return None
    path: Path | None = arguments.tokens or (SERVERS_TOKENS if SERVERS_TOKENS.exists() else None)
    if path:
        TokenFile(path).holders()
        path = path.resolve()
    if not is_loopback(arguments.host) and not secured(path) and not arguments.open:
        raise ValueError(
            f"host {arguments.host} is open to other machines, but there are no tokens; make one with "
            "lorkd tokens add NAME --role annotator, or add --open if everyone there may read the studies"
        )
    return path


def secured(tokens: Path | None) -> bool:
    """Whether a request needs a token, of the file or of a realm."""
    return tokens is not None or os.environ.get("MONAI_LABEL_AUTH_ENABLE", "").lower() in ("1", "true", "yes", "on")


def checked_tls(certificate: Path | None, key: Path | None) -> list[str]:
    """Give MONAI Label's options for https; none where nothing is asked for.

    Raises:
        ValueError: one of the two is missing, or they don't belong together.
        OSError: a file can't be read.
    """
    if certificate is None and key is None:
        return []
    if certificate is None or key is None:
        raise ValueError("https needs both --tls-cert and --tls-key; give the other one too")
    for path in (certificate, key):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file that exists; check --tls-cert and --tls-key")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        raise ValueError(
            f"{certificate} and {key} are no certificate and its key without a password ({error.reason or error})"
        ) from error
    return ["--ssl_certfile", str(certificate.resolve()), "--ssl_keyfile", str(key.resolve())]


def work_folder(folder: Path) -> Path:
    """Make the folder that takes what the server writes: to MONAI Label it is an app, and ours is its only line.

    Raises:
        ValueError: another app is there.
        OSError: it can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    main = folder / "main.py"
    if main.exists() and main.read_text(encoding="utf-8") != WORK_MAIN:
        raise ValueError(f"{folder} holds an app of its own ({main}); name another folder with --work")
    main.write_text(WORK_MAIN, encoding="utf-8")
    return folder.resolve()


def check_installed(*, plain: bool) -> None:
    """Check that MONAI Label is there.

    Raises:
        ValueError: it is not, or cannot start as it is asked to.
    """
    way_out = "run: pip install 'lorkd-monailabel[server]'"
    if importlib.util.find_spec("monailabel") is None:
        raise ValueError(f"MONAI Label is not installed, and the server needs it; {way_out}")
    if plain and (pydicom := importlib.metadata.version("pydicom")).partition(".")[0] != "2":
        raise ValueError(f"MONAI Label's own application needs pydicom 2, not {pydicom}; omit --plain, or {way_out}")


def checked_studies(studies: str) -> str:
    """Give the absolute path of the folder of studies; a DICOMweb address as it is.

    Raises:
        OSError: there is no such folder.
    """
    if studies.startswith(("http://", "https://")):
        return studies
    if not Path(studies).is_dir():
        raise FileNotFoundError(f"studies {studies} is not a folder that exists; make it, or check the path")
    return str(Path(studies).resolve())


def check_port(host: str, port: int) -> None:
    """Check that nobody listens there, in a way that a server that just ended does not count.

    Raises:
        ValueError: the port or the host can't be used.
    """
    if not 1 <= port <= 65535:
        raise ValueError(f"port {port} must be in 1..65535; 8000 is usual")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(f"host {host!r} is unknown ({error.strerror}); use 127.0.0.1 or 0.0.0.0") from error
    with socket.socket(family, kind, protocol) as probe:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(place)
        except OSError as error:
            raise ValueError(
                f"port {port} of {host} can't be used ({error.strerror}); choose another with --port {_another(port)}"
            ) from error


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address(host: str, port: int, *, tls: bool = False) -> str:
    """Give the address for clients: this machine's name where the server listens everywhere."""
    name = socket.gethostname() if host in ANYWHERE else host
    scheme = "https" if tls else "http"
    return f"{scheme}://[{name}]:{port}" if ":" in name else f"{scheme}://{name}:{port}"


def environment(app: Path = APP) -> dict[str, str]:
    """Give the server's environment.

    This very package is importable, installed or not.

    Args:
        app: the folder that it writes; the uploads of sessions lie there too unless it is the package itself.
    """
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    path = [] if str(APP.parent) in installed else [str(APP.parent)]
    path += filter(None, [os.environ.get("PYTHONPATH")])
    sessions = {} if app == APP else {"MONAI_LABEL_SESSION_PATH": str(app / "sessions")}
    importable = {"PYTHONPATH": os.pathsep.join(path)} if path else {}
    return {**sessions, **os.environ, **importable}


def become(command: list[str], variables: dict[str, str]) -> int:
    """Run the server in the place of this process, so that signals reach it; return its status where that can't be."""
    if os.name == "posix":
        os.execve(command[0], command, variables)
    return subprocess.call(command, env=variables)


def _another(port: int) -> int:
    return port + 1 if 1024 <= port < 65535 else 8001
