"""Files that are whole or absent: each is written under a temporary name and then moved into place."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from acefast.values import RequestError


def check_writable(path: Path) -> None:
    """Raise RequestError unless a file can be made at ``path``, an existing file replaced; leaves nothing behind."""
    try:
        if path.exists() and not path.is_file():
            raise RequestError(f"output: {str(path)!r} is not a regular file and cannot be replaced; name a file")
        if not path.parent.is_dir():
            raise RequestError(f"output: the folder {str(path.parent)!r} does not exist; make it or name another")
        probe = _beside(path)
        probe.touch(exist_ok=False)
        probe.unlink()
    except (OSError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"output: cannot write {str(path)!r}: {reason}; name another folder or file") from error


def write_together(writers: Mapping[Path, Callable[[Path], None]]) -> None:
    """Make several files, or none: each writer fills a temporary name beside its file, then all are moved there.

    Whatever ends a writer, Ctrl-C included, leaves every file as it was and no temporary one.

    Raises:
        RequestError: the disk is full or failed, with the file, the reason and the space that is free.
    """
    from soundfile import LibsndfileError

    temporaries = {path: _beside(path) for path in writers}

    def clean() -> None:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)

    try:
        for path, write in writers.items():
            write(temporaries[path])
        for path, temporary in temporaries.items():
            os.replace(temporary, os.path.realpath(path))
    except (OSError, LibsndfileError) as error:
        clean()  # before the space is measured
        free = shutil.disk_usage(path.parent).free / 1e6 if path.parent.is_dir() else 0
        reason = getattr(error, "strerror", None) or getattr(error, "error_string", str(error))
        reason = reason.removeprefix("Error : ").rstrip(".")
        raise RequestError(
            f"output: writing {str(path)!r} failed ({reason}) and left nothing behind; its disk has {free:.1f} MB free"
        ) from error
    finally:
        clean()


def _beside(path: Path) -> Path:
    """A fresh name in the same folder (a move within one is atomic), short, and hidden."""
    return Path(os.path.realpath(path)).with_name(f".acefast-{os.getpid()}-{secrets.token_hex(4)}.part")
