"""The command `psvit`: the first word names what to do, the others are its options."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "tune": "search token pooling and attention sharing on your images",
    "train": "train one configuration",
    "compare": "train the winner of a search and DeiT with several seeds",
    "report": "make tables and pictures of searches again, from their records",
    "prepare": "write images as mixed Parquet shards",
    "export": "make a folder to deploy of a training",
    "evaluate": "score an exported model on labelled images",
    "predict": "classify images with an exported model",
    "doctor": "check a cluster host by host",
    "latency": "measure how long the parts of networks take here",
    "redundancy": "measure how alike the attention maps of a network are",
    "recipe": "write a recipe for your images, to edit and to run",
    "recipes": "list the recipes, or print one of them",
}


def main() -> None:
    """Runs the command that the first argument names; exits with 2 for an unknown command."""
    name, *argv = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: psvit COMMAND [OPTIONS], psvit COMMAND --help, psvit --version\n")
        print("\n".join(f"  {command:<{width}}  {what}" for command, what in COMMANDS.items()))
    elif name in ("-V", "--version"):
        from psvit_ray import __version__

        print(f"psvit-ray {__version__}")
    elif name in COMMANDS:
        run(name, argv)
    else:
        from psvit_ray.commands.exits import fail
        from psvit_ray.text.messages import nearest, short_repr

        fail(
            2,
            f"command must be one of {', '.join(COMMANDS)}, got {short_repr(name)}; nearest is "
            f"{nearest(name, COMMANDS)!r}",
        )


def run(name: str, argv: Sequence[str] | None = None) -> None:
    """Parses the options of a command, by default the arguments of the process, works and exits.

    What the work needs is imported when the options are right: torch alone takes two seconds.
    """
    try:
        from psvit_ray.commands import command_line, options
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)

    def work(job: object) -> int:
        from psvit_ray.commands.paths import check_paths

        check_paths(job)
        return importlib.import_module(f"psvit_ray.commands.{name}").work(job)

    job = getattr(options, f"{name.capitalize()}Job")
    command_line.run(job, work, argv, prog=f"psvit {name}")
