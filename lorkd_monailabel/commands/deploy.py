"""``lorkd deploy``: files that run the server for good, as a service or in a container."""

import argparse

from lorkd_monailabel.commands.options import APP, Subparsers

FILES = {"systemd": APP / "deploy" / "lorkd.service", "container": APP / "deploy" / "Containerfile"}


def add_to(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser("deploy", help="files to run the server as a service", description=__doc__)
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    show = actions.add_parser("show", help="print a file; how to use it stands at its top")
    show.add_argument("kind", choices=FILES, help="a unit of systemd, or a Containerfile for podman and docker")
    show.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the file."""
    print(FILES[arguments.kind].read_text(encoding="utf-8"), end="")
    return 0
