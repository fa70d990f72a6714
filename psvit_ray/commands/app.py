"""The command `psvit`: the first word names what to do, the others are its arguments."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "tune": "search token pooling and attention sharing on your images",
    "train": "train one configuration",
    "compare": "train the winner of a search and DeiT with several seeds",
    "report": "make tables and pictures of searches again, from their records",
    "prepare": "write images as mixed Parquet shards",
    "export": "make a folder to deploy of a training",
    "evaluate": "score an exported model on labelled images",
    "predict": "answer for images with an exported model",
    "doctor": "check a cluster host by host",
    "latency": "measure how long the parts of networks take here",
    "redundancy": "measure how alike the attention maps of a network are",
}


def main() -> None:
    """Runs the command that the first argument names; exits with 2 for an unknown one."""
    name, *argv = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: psvit COMMAND [FLAGS], psvit COMMAND --help\n")
        print("\n".join(f"  {command:<{width}}  {what}" for command, what in COMMANDS.items()))
        return
    if name not in COMMANDS:
        print(f"error: command must be one of {', '.join(COMMANDS)}, got {name!r}", file=sys.stderr)
        raise SystemExit(2)
    importlib.import_module(f"psvit_ray.commands.{name}").main(argv)
