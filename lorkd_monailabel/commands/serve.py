"""``lorkd serve``: MONAI Label's server with our app and front door, in the place of this process."""

import argparse
import importlib.metadata
import importlib.util
import os
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

from lorkd_monailabel.commands.options import APP, SERVERS_STORE, Subparsers, add_device, store_folder

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANYWHERE = ("0.0.0.0", "::")


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
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000")
    parser.add_argument("--plain", action="store_true", help="MONAI Label's own application, without the front door")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check what can be checked, print the address, and become the server.

    Raises:
        ValueError: MONAI Label is missing, or the device, the host or the port can't be used.
        OSError: studies or store are missing.
    """
    check_installed(plain=arguments.plain)
    studies = checked_studies(arguments.studies)
    store = None if arguments.store is None else store_folder(arguments.store).resolve()
    check_port(arguments.host, arguments.port)
    if arguments.device:
        from lorkd_monailabel.devices import checked_device

        checked_device(arguments.device)
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP), "--studies", studies]
    command += ["--host", arguments.host, "--port", str(arguments.port)]
    command += [] if store is None else ["--conf", "store", str(store)]
    command += ["--conf", "device", arguments.device] if arguments.device else []
    command += [] if arguments.plain else ["--uvicorn_app", "lorkd_monailabel.asgi:app"]
    print(f"studies {studies}, store {store or SERVERS_STORE}")
    print(f"paste into Slicer: {address(arguments.host, arguments.port)}   (Ctrl+C stops the server)", flush=True)
    if arguments.host not in LOOPBACK:
        print("lorkd: whoever reaches this address can read the studies; be sure of the network", file=sys.stderr)
    return become(command, environment())


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


def address(host: str, port: int) -> str:
    """Give the address for clients: this machine's name where the server listens everywhere."""
    name = socket.gethostname() if host in ANYWHERE else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def environment() -> dict[str, str]:
    """Give the server's environment, in which this very package is importable, installed or not."""
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    path = [] if str(APP.parent) in installed else [str(APP.parent)]
    path += filter(None, [os.environ.get("PYTHONPATH")])
    return {**os.environ, **({"PYTHONPATH": os.pathsep.join(path)} if path else {})}


def become(command: list[str], variables: dict[str, str]) -> int:
    """Run the server in the place of this process, so that signals reach it; return its status where that can't be."""
    if os.name == "posix":
        os.execve(command[0], command, variables)
    return subprocess.call(command, env=variables)


def _another(port: int) -> int:
    return port + 1 if 1024 <= port < 65535 else 8001
