"""manifest.json: what an artifact is, whom it was built for, and the hash of every file.

A file's hash is the XXH3 (128 bits) of the XXH3 digests of its 16 MiB pieces, in order, so that all
cores hash one big file, as fast as memory gives it (660 MB on two cores of Granite Rapids in 0.04
s, where SHA-256 took 0.31: half of what a process took up to its first token). It finds damage, and
nothing is sampled: one altered bit anywhere is found. It is no seal: who can change a file can also
change the manifest, which carries its own hash.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import xxhash

from .errors import ArtifactError
from .library import available_cores
from .tiles import allow_tiles, tiles_refused

FORMAT = 2
MANIFEST = "manifest.json"
PIECE = 16 << 20
_DIGEST, _HASH = "digest", "xxh3"

Manifest = dict[str, Any]


def write_manifest(directory: Path, fields: Mapping[str, Any]) -> Manifest:
    """Hash every file under `directory` and write its manifest, last of all files.

    `fields` say what the artifact is: `target` {"kind", "arch", "features"} is needed; `model`,
    `limits`, `parity` and whatever else is worth keeping may be added. Plain JSON values only.
    """
    directory = Path(directory)
    paths = sorted(p for p in directory.rglob("*") if p.is_file() and p != directory / MANIFEST)
    names = [p.relative_to(directory).as_posix() for p in paths]
    manifest: Manifest = {"format": FORMAT, **fields}
    manifest["files"] = {
        name: {"bytes": path.stat().st_size, _HASH: digest}
        for name, path, digest in zip(names, paths, hash_files(paths), strict=True)
    }
    manifest[_DIGEST] = _own_digest(manifest)
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an artifact; an absent, altered or foreign one is an `ArtifactError`."""
    path = Path(directory) / MANIFEST
    if not path.is_file():
        hint = "; it is a checkpoint: compile it first, ferrule compile DIR -o ARTIFACT"
        known = (Path(directory) / "config.json").is_file()
        raise ArtifactError(
            f"{directory}: no artifact here: it has no {MANIFEST}{hint if known else ''}"
        )
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise ArtifactError(f"{path}: damaged: not JSON: {error}") from None
    if not isinstance(manifest, dict):
        raise ArtifactError(f"{path}: damaged: wanted an object")
    fields = cast(Manifest, manifest)
    if fields.get("format") != FORMAT:
        given = fields.get("format")
        raise ArtifactError(f"{path}: format {given!r}, this version of ferrule reads {FORMAT}")
    if fields.get(_DIGEST) != _own_digest(fields):
        raise ArtifactError(f"{path}: altered: its content does not match its {_DIGEST}")
    for key in ("target", "files"):
        if not isinstance(fields.get(key), dict):
            raise ArtifactError(f"{path}: damaged: no {key!r}")
    for name in cast("dict[str, Any]", fields["files"]):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtifactError(f"{path}: file {name!r} is not inside the artifact")
    return fields


def check_files(directory: Path, manifest: Manifest) -> None:
    """Raise `ArtifactError` for the first file that is missing, truncated or altered."""
    files = cast("dict[str, dict[str, Any]]", manifest["files"])
    paths = [Path(directory) / name for name in files]
    for path, wanted in zip(paths, files.values(), strict=True):
        _check_size(path, wanted["bytes"])
    for path, wanted, digest in zip(paths, files.values(), hash_files(paths), strict=True):
        if digest != wanted.get(_HASH):
            raise ArtifactError(
                f"{path}: altered: {_HASH} is {digest}, the manifest has {wanted.get(_HASH)}"
            )


def _check_size(path: Path, wanted: int) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path}: missing: the manifest lists it with {wanted} bytes")
    if (given := path.stat().st_size) != wanted:
        fault = "truncated" if given < wanted else "altered"
        raise ArtifactError(f"{path}: {fault}: {given} bytes, the manifest has {wanted}")


def check_machine(directory: Path, manifest: Manifest) -> None:
    """Raise `ArtifactError` unless this machine has all that the artifact's kernels need."""
    target = cast("dict[str, Any]", manifest["target"])
    if target.get("kind") == "cuda":
        from .cuda.opening import open_device

        try:
            open_device(str(target.get("arch"))).close()
        except ArtifactError as error:
            raise ArtifactError(f"{directory}: {error}") from error
        return
    if target.get("kind") != "cpu":
        raise ArtifactError(
            f"{directory}: built for {target.get('kind')!r}, this runtime serves 'cpu' and 'cuda'"
        )
    have, needed = cpu_features(), set(cast("list[str]", target.get("features", [])))
    missing = sorted(needed - have)
    if missing:
        raise ArtifactError(
            f"{directory}: built for {target.get('arch')}, which needs {', '.join(missing)};"
            f" this machine ({cpu_name()}) has not. Compile it again here, or for an older target"
        )
    if "amx_tile" in needed and not allow_tiles():
        raise ArtifactError(
            f"{directory}: built for {target.get('arch')}, whose tile registers the system does"
            f" not let this process use ({tiles_refused()}). Compile it for an older target"
        )


def cpu_features(path: str = "/proc/cpuinfo") -> frozenset[str]:
    """The instruction sets of this machine, in the kernel's words."""
    return frozenset(_cpu_line("flags", path).split())


def cpu_name(path: str = "/proc/cpuinfo") -> str:
    """The processor's name as it gives it."""
    return _cpu_line("model name", path) or "unknown processor"


def _cpu_line(key: str, path: str) -> str:
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def hash_files(paths: Iterable[Path]) -> list[str]:
    """The hash of each file, pieces of all files hashed on all cores."""
    with ThreadPoolExecutor(len(available_cores())) as workers:
        pending = [
            [
                workers.submit(_hash_piece, path, at)
                for at in range(0, max(1, path.stat().st_size), PIECE)
            ]
            for path in paths
        ]
        return [
            xxhash.xxh3_128_hexdigest(b"".join(p.result() for p in pieces)) for pieces in pending
        ]


def _hash_piece(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        length = min(PIECE, os.fstat(file.fileno()).st_size - offset)
        if length <= 0:
            return xxhash.xxh3_128_digest(b"")
        # Mapped, not read: hashing is all that touches the bytes.
        with mmap.mmap(file.fileno(), length, offset=offset, access=mmap.ACCESS_READ) as piece:
            return xxhash.xxh3_128_digest(piece)


def _own_digest(manifest: Manifest) -> str:
    rest = {key: value for key, value in manifest.items() if key != _DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
