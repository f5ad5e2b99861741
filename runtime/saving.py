"""Puts an artifact's directory in place whole, or not at all."""

import ctypes
import errno
import os
import shutil
from pathlib import Path

from .errors import ArtifactError
from .manifest import MANIFEST, read_manifest

_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE = -100  # AT_FDCWD


def save_directory(source: Path, target: Path, *, link: bool) -> None:
    """Copy the artifact at `source` to `target`, beside it first, then in one rename.

    An artifact that is already there is replaced; any other content is refused. `link` makes hard
    links where the file system is the same: only for a source that nobody will change. Raises
    `ArtifactError` where it cannot be done, and leaves nothing half done.
    """
    source, target = Path(source), Path(target)
    _check_target(target)
    beside = target.parent / f".{target.name}.{os.getpid()}.partial"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy_all(source, beside, link=link)
        _put_in_place(beside, target)
    except OSError as error:
        raise ArtifactError(_reason(source, target, error)) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _check_target(target: Path) -> None:
    if target.is_dir():
        if any(target.iterdir()) and not (target / MANIFEST).is_file():
            raise ArtifactError(f"{target}: not saved: it holds files that are no artifact")
    elif target.exists():
        raise ArtifactError(f"{target}: not saved: it is a file, wanted a directory or nothing")


def _copy_all(source: Path, beside: Path, *, link: bool) -> None:
    shutil.rmtree(beside, ignore_errors=True)
    for name in [*read_manifest(source)["files"], MANIFEST]:
        copy = beside / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        _copy_file(source / name, copy, link=link)
        _flush(copy)
    for directory in {beside, *(p.parent for p in beside.rglob("*"))}:
        _flush(directory)


def _copy_file(source: Path, copy: Path, *, link: bool) -> None:
    if link:
        try:
            os.link(source, copy)
            return
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
    shutil.copyfile(source, copy)


def _put_in_place(beside: Path, target: Path) -> None:
    if target.exists() and any(target.iterdir()):
        _exchange(beside, target)
    else:
        beside.rename(target)
    _flush(target.parent)


def _exchange(beside: Path, target: Path) -> None:
    """Swap the two directories at once; where the file system cannot, in two renames."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_HERE, os.fsencode(beside), _HERE, os.fsencode(target), _EXCHANGE) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(target))
    old = beside.with_suffix(".replaced")
    target.rename(old)
    try:
        beside.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(source: Path, target: Path, error: OSError) -> str:
    text = f"{target}: not saved, and nothing was left there: {error.strerror or error}"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return text
    needed = sum(p.stat().st_size for p in source.rglob("*") if p.is_file())
    free = shutil.disk_usage(target.parent).free
    return f"{text}: {needed} bytes are needed, {free} are free"
