"""``lorkd tokens``: who may use the server. A token is shown once; the file keeps its hash only."""

import argparse
from pathlib import Path

from lorkd_monailabel.commands.options import APP, Subparsers
from lorkd_monailabel.commands.tables import table
from lorkd_monailabel.front_door import tokens
from lorkd_monailabel.front_door.roles import ROLES

SERVERS_TOKENS = APP / "model" / "tokens.json"
"""The file of a server that was told none, where it exists."""


def add_to(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser("tokens", help="give and withdraw tokens of the server", description=__doc__)
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    add = actions.add_parser("add", help="make a token and print it, this once")
    add.add_argument("name", metavar="NAME", help="whose it is")
    add.add_argument("--role", required=True, choices=ROLES, help="viewer < annotator < trainer < admin")
    add.set_defaults(run=run_add)
    remove = actions.add_parser("remove", help="withdraw a token; a running server refuses it from then on")
    remove.add_argument("name", metavar="NAME")
    remove.set_defaults(run=run_remove)
    show = actions.add_parser("list", help="print names and roles")
    show.set_defaults(run=run_list)
    for action in (add, remove, show):
        action.add_argument(
            "--tokens", type=Path, metavar="FILE", default=SERVERS_TOKENS, help=f"default: {SERVERS_TOKENS}"
        )


def run_add(arguments: argparse.Namespace) -> int:
    """Make a token."""
    print(tokens.add(arguments.tokens, arguments.name, arguments.role))
    return 0


def run_remove(arguments: argparse.Namespace) -> int:
    """Withdraw a token."""
    tokens.remove(arguments.tokens, arguments.name)
    print(f"{arguments.name} has no token any more")
    return 0


def run_list(arguments: argparse.Namespace) -> int:
    """Print the holders."""
    holders = tokens.TokenFile(arguments.tokens).holders()
    print(table(("name", "role", "made"), [(each.name, each.role.name.lower(), each.made) for each in holders]))
    return 0
