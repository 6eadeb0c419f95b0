"""The command line, ``lorkd``: each command is a module of ``commands``, which says what it does.

Results go to the standard output, all else to the standard error. Exit status 0: done; 1: ``doctor``, ``experts`` or
``cases check`` found something wrong; 2: what was asked can't be done, said in one sentence; 130: interrupted.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from lorkd_monailabel import __version__
from lorkd_monailabel.commands import (
    cases,
    deploy,
    doctor,
    experts,
    export,
    foundation,
    segment,
    serve,
    tokens,
    vocabulary,
)

INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """Argument parser that says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    try:
        arguments = parser().parse_args(argv)
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough; nothing may be written to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        print(f"lorkd: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lorkd: interrupted", file=sys.stderr)
        return INTERRUPTED
    return status


def parser() -> Parser:
    """Make the parser of all commands."""
    top = Parser(
        prog="lorkd",
        description="Department experts for text-prompted 3D segmentation.",
        epilog="`lorkd COMMAND --help` says more.",
    )
    top.add_argument("--version", action="version", version=f"lorkd {__version__}")
    subparsers = top.add_subparsers(metavar="COMMAND", required=True)
    for command in (segment, experts, cases, serve, tokens, doctor, deploy, vocabulary, foundation, export):
        command.add_to(subparsers)
    return top


if __name__ == "__main__":
    raise SystemExit(main())
