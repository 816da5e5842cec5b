"""Files: they are replaced as a whole, and only one run at a time writes them.

A file that is being written has a temporary name in the same folder. It gets its own name when all
of it is on the disk, so a reader never finds half a file, and a failure leaves the earlier file as
it was. An error of the operating system names the file.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import stat
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Errors of a file system that has no locks."""


@contextmanager
def naming(path: Path | str, temporary: Path | None = None) -> Iterator[None]:
    """Name the file in an OSError without a name, such as that of a full disk.

    ``temporary`` is another name of the file, which is replaced in the error.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Replace a file by these bytes; its folder is made. After an error it is as it was before.

    The permissions stay those of the earlier file.

    Raises:
        OSError: the file cannot be written; ``filename`` is ``path`` or its folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        # A device or a pipe has no earlier content to keep, and must not be replaced by a file.
        with naming(path), path.open("wb") as file:
            file.writelines(parts)
        return
    target = path.resolve()  # a symbolic link stays one
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    # Not from the tempfile module, whose files only their owner may read.
    partial = target.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with naming(path, partial):
            # Whoever could not read the earlier file must not read this one while it is written.
            opener = None if mode is None else functools.partial(os.open, mode=mode)
            with open(partial, "xb", opener=opener) as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            if mode is not None:
                partial.chmod(mode)  # the umask may have taken some of it
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file by this text, in UTF-8; see :func:`write_bytes`."""
    write_bytes(path, text.encode())


def append_text(path: Path, text: str) -> None:
    """Append this text, in UTF-8, to a file. After an error it is as it was before.

    Raises:
        OSError: the file cannot be written; ``filename`` is ``path``.
    """
    with naming(path):
        file = path.open("ab")
        size = file.tell()
        try:
            with file:
                file.write(text.encode())
        except OSError:
            if path.is_file():
                os.truncate(path, size)
            raise


@contextmanager
def claimed(*paths: Path) -> Iterator[None]:
    """Claim files for this run alone during the block; their folders are made.

    A claim ends with its process, however that ends. On a file system without locks, and on
    Windows, nothing is claimed.

    Raises:
        BlockingIOError: another run has claimed one of them; the message says which.
        OSError: nothing can be written to a folder.
    """
    with ExitStack() as claims:
        for path in paths:
            claims.enter_context(_claimed(path))
        yield


@contextmanager
def _claimed(path: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with lock.open("ab+", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                owner = file.read().decode() or "another process"
                raise BlockingIOError(
                    errno.EWOULDBLOCK, f"{owner} is writing to it", str(path)
                ) from error
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            if not _is_at(file.fileno(), lock):
                continue  # the owner removed it between the opening and the lock
            try:
                with naming(lock):
                    file.truncate(0)
                    file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
                yield
            finally:
                if _is_at(file.fileno(), lock):
                    lock.unlink()
            return


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one at that path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
