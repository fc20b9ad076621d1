"""What a folder of this machine holds, links followed, but never round and round."""

import os
import posixpath

# What systems keep beside a user's files: copies of them, thumbnails, what was deleted.
_OF_SYSTEMS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}


def is_hidden(name: str) -> bool:
    """True for a file or folder that is not the user's own."""
    return name.startswith(".") or name in _OF_SYSTEMS


def walk(base: str, *, recursive: bool) -> list[tuple[str, int | None]]:
    r"""(path below base, size in bytes), in no order. Size None: a folder, or what is neither that nor a file.

    A folder is not entered a second time below itself, whatever a link says. A path that is not UTF-8 has its odd bytes
    written as \xff and size None: nothing here could name it. Hidden names are left out. Raises OSError.
    """
    entries: list[tuple[str, int | None]] = []
    waiting = [("", frozenset({_identity(os.stat(base))}))]
    while waiting:
        folder, above = waiting.pop()
        for entry in os.scandir(os.path.join(base, folder)):
            if is_hidden(entry.name):
                continue
            path, size = posixpath.join(folder, entry.name), None
            try:
                path.encode()
                if entry.is_file():
                    size = entry.stat().st_size
                elif recursive and entry.is_dir() and (me := _identity(entry.stat())) not in above:
                    waiting.append((path, above | {me}))
            except UnicodeEncodeError:
                path = os.fsencode(path).decode(errors="backslashreplace")
            except OSError:  # a link that leads to itself, or a file that has just gone
                pass
            entries.append((path, size))
    return entries


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
