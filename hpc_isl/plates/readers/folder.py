"""What lies below an export's folder, listed once; names that lead out of it are refused here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hpc_isl.errors import UserError

_PLAIN = re.compile(r"[\w(). -]*[\w)-]")
_ELSEWHERE = re.compile(r"[A-Za-z][\w+.-]*:")  # a drive or an address


@dataclass(frozen=True)
class Folder:
    """The files below a folder.

    Attributes:
        root: the folder, with links in its own path resolved.
        files: paths of all files below it, relative, with forward slashes; hidden ones left out.
        leaving: links, to files or folders, that lead out of it; no file is reached through them.
    """

    root: Path
    files: frozenset[str]
    leaving: frozenset[str]

    def locate(self, name: str, origin: str) -> str:
        """`name`, as an index or a table gives it, as a path relative to the folder.

        The file need not be there. Backslashes separate folders, as Windows writes them.

        Raises:
            UserError: naming `origin` and the name, where it leads out of the folder.
        """
        if _PLAIN.fullmatch(name) and not self.leaving:
            return name
        path = PurePosixPath(name.replace("\\", "/"))
        if not name or "\0" in name or _ELSEWHERE.match(name) or path.is_absolute() or ".." in path.parts:
            raise UserError(
                f"{origin} names {name!r}: a file below {self.root} is expected; nothing else is opened"
            )
        for part in (path, *path.parents):
            if str(part) in self.leaving:
                raise UserError(
                    f"{origin} names {name!r}, and {self.root / part} is a link that leads out of {self.root}"
                )
        return str(path)


def list_folder(folder: Path) -> Folder:
    """All files below `folder`; links to folders are not followed.

    Raises:
        UserError: the folder is not there or cannot be listed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    root = folder.resolve()
    files: set[str] = set()
    leaving: set[str] = set()
    stack = [""]
    while stack:
        below = stack.pop()
        for entry in _entries(root / below):
            name = below + entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(root):
                leaving.add(name)
            elif entry.is_dir(follow_symlinks=False):
                stack.append(name + "/")
            elif entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path):
                files.add(name)
    return Folder(root, frozenset(files), frozenset(leaving))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror}") from None
