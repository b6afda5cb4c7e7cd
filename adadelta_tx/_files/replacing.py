"""Writing a file whole or not at all."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from typing import BinaryIO

StrPath = str | os.PathLike[str]


@contextlib.contextmanager
def replacing(filename: StrPath) -> Iterator[BinaryIO]:
    """A new file that takes the place of another when it is complete on the disk."""
    path = os.path.realpath(filename)
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "There is no folder", folder)
    if os.path.islink(path):
        raise OSError(errno.ELOOP, "A link that leads to itself", str(filename))
    old = os.stat(path) if os.path.exists(path) else None
    if (old and not stat.S_ISREG(old.st_mode)) or not os.path.basename(filename):
        raise IsADirectoryError(errno.EISDIR, "Not a regular file", str(filename))
    mode = stat.S_IMODE(old.st_mode) if old else 0o666
    temporary = os.path.join(folder, f".{name[:50]}.{secrets.token_hex(4)}.tmp")
    try:
        # No one may read this who may not read the old one.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with open(os.open(temporary, flags, mode), "r+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if old:
            _as_before(temporary, old)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    # The file is in its place. Not every file system can flush a folder.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _as_before(path: str, old: os.stat_result) -> None:
    """Gives a file the owner, where that is allowed, and the mode of an old one."""
    new = os.stat(path)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        with contextlib.suppress(PermissionError):
            os.chown(path, old.st_uid, old.st_gid)
            new = os.stat(path)  # whose bits it may have cleared
    if stat.S_IMODE(new.st_mode) != stat.S_IMODE(old.st_mode):
        os.chmod(path, stat.S_IMODE(old.st_mode))
