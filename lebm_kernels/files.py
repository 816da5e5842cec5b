"""Files: they are replaced as a whole.

A file that is being written has a temporary name in the same folder. It gets its own name when all
of it is on the disk, so a reader never finds half a file, and a failure leaves the earlier file as
it was. An error of the operating system names the file.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


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


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file, which replaces ``path`` at the end of the block.

    The folder is made. After an error in the block ``path`` is as it was before.

    Raises:
        OSError: the file cannot be written; ``filename`` is ``path`` or its folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        # A device or a pipe has no earlier content to keep, and must not be replaced by a file.
        with naming(path), path.open("wb") as file:
            yield file
        return
    target = path.resolve()  # a symbolic link stays one
    # Not from the tempfile module, whose files only their owner may read.
    partial = target.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with naming(path, partial):
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
