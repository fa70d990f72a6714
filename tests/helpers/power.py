"""A disk that forgets: what a process does to files below a folder, and the states in which a
power cut may leave them.

What is seen are Python's own file operations (audit events, and `os.fsync`); the product writes to
a disk by no others. A file that was not synced is empty, cut or whole; an entry of a folder that
was not synced (a new name, a rename, a deletion) is there or not, each for itself.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class Killed(BaseException):
    """Ends a writer as SIGKILL does: nothing that it would do after has an effect."""


@dataclass
class Node:
    """A file or a folder, whatever its name."""

    is_folder: bool = False
    content: bytes = b""
    synced: bool = False
    lasting: dict[str, Node] = field(default_factory=dict)
    """Of a folder: the entries that were synced."""
    pending: list[dict[str, Node | None]] = field(default_factory=list)
    """Of a folder: changes since; each has all or no effect."""

    def entry(self, name: str) -> Node | None:
        for change in reversed(self.pending):
            if name in change:
                return change[name]
        return self.lasting.get(name)

    def sync(self, content: bytes) -> None:
        self.content, self.synced = content, True
        for change in self.pending:
            self._apply(change, self.lasting)
        self.pending.clear()

    def put_down(self, path: Path, choose: random.Random | None) -> None:
        """As it may be found after a power cut; without `choose`, nothing that was not synced."""
        if not self.is_folder:
            lengths = [0] if choose is None else [0, len(self.content) // 2, len(self.content)]
            length = len(self.content) if self.synced else (choose or random).choice(lengths)
            path.write_bytes(self.content[:length])
            return
        path.mkdir()
        entries = dict(self.lasting)
        for change in self.pending:
            if choose and choose.random() < 0.7:
                self._apply(change, entries)
        for name, node in entries.items():
            node.put_down(path / name, choose)

    @staticmethod
    def _apply(change: dict[str, Node | None], entries: dict[str, Node]) -> None:
        for name, node in change.items():
            entries.pop(name, None)
            if node:
                entries[name] = node


class Disk:
    """Watches the folder `root`, which is empty and lasts. `before` is called with the number of
    every operation; what it raises keeps that one and all later ones from happening."""

    def __init__(self, root: Path, before: Callable[[int], None] = lambda number: None) -> None:
        self.root, self.top, self.operations = root, Node(is_folder=True), 0
        self._before, self._killed = before, False

    def see(self, event: str, *paths: str, write: bool = True) -> None:
        if not all(Path(path).is_relative_to(self.root) for path in paths) or not write:
            return
        if self._killed:
            raise Killed
        try:
            self._before(self.operations)
        except Killed:
            self._killed = True
            raise
        self.operations += 1
        getattr(self, event)(*map(Path, paths))

    def node(self, path: Path) -> Node:
        found: Node | None = self.top
        for name in path.relative_to(self.root).parts:
            assert found
            found = found.entry(name)
        assert found, path
        return found

    def _change(self, folder: Path, change: dict[str, Node | None]) -> None:
        self.node(folder).pending.append(change)

    def make(self, path: Path) -> None:
        if not path.exists():
            self._change(path.parent, {path.name: Node()})

    def make_folder(self, path: Path) -> None:
        if not path.exists():
            self._change(path.parent, {path.name: Node(is_folder=True)})

    def remove(self, path: Path) -> None:
        if path.is_file():
            self._change(path.parent, {path.name: None})

    def remove_folder(self, path: Path) -> None:
        if path.is_dir() and not any(path.iterdir()):
            self._change(path.parent, {path.name: None})

    def rename(self, old: Path, new: Path) -> None:
        assert old.parent == new.parent
        node = self.node(old)
        if old.is_file() and not node.synced:
            node.content = old.read_bytes()
        self._change(old.parent, {old.name: None, new.name: node})

    def sync(self, path: Path) -> None:
        self.node(path).sync(path.read_bytes() if path.is_file() else b"")


_watching: list[Disk] = []


def _hook(event: str, given: tuple[Any, ...]) -> None:
    if not _watching:
        return
    disk = _watching[-1]
    if event == "open" and isinstance(given[0], str):
        disk.see("make", given[0], write=bool(given[2] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)))
    elif event == "os.mkdir":
        disk.see("make_folder", os.fspath(given[0]))
    elif event == "os.remove":
        disk.see("remove", os.fspath(given[0]))
    elif event == "os.rmdir":
        disk.see("remove_folder", os.fspath(given[0]))
    elif event == "os.rename":
        disk.see("rename", os.fspath(given[0]), os.fspath(given[1]))


sys.addaudithook(_hook)


@contextmanager
def watched(disk: Disk) -> Iterator[Disk]:
    """Sees all that this process does meanwhile, and ends where it is killed."""
    works = os.fsync

    def fsync(fd: Any) -> None:
        with suppress(FileNotFoundError):
            disk.see("sync", os.readlink(f"/proc/self/fd/{fd}"))
        # The layer knows what lasts: the real disk need not.

    os.fsync = fsync
    _watching.append(disk)
    try:
        with suppress(Killed):
            yield disk
    finally:
        _watching.pop()
        os.fsync = works
