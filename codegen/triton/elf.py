"""What a cubin says of its kernels: registers of a thread, bytes of its stack, where spills go.

A cubin is an ELF file of 64 bits. The registers of its functions and the bytes of their stack
frames stand in .nv.info, in attributes of four bytes each: a format, a kind, a size, and so many
bytes (observed with cuobjdump --dump-elf; EIATTR_FRAME_SIZE is 0x11, EIATTR_REGCOUNT 0x2f, their
values a symbol and a number). Older files have the registers in the upper byte of the `sh_info` of
.text.NAME.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import CodegenError

_FRAME_SIZE, _REGISTERS = 0x11, 0x2F
_SIZED = 0x04


@dataclass(frozen=True)
class Resources:
    """Registers of a thread, and bytes that it keeps in memory for want of them."""

    registers: int
    spilled: int


@dataclass(frozen=True)
class _Section:
    name: str
    offset: int
    size: int
    info: int


def resources_of(image: bytes, symbol: str) -> Resources:
    """What a kernel of a cubin takes; raises CodegenError where the file has no such kernel."""
    sections = {s.name: s for s in _sections(image)}
    code = sections.get(f".text.{symbol}")
    if code is None:
        raise CodegenError(f"the cubin has no kernel {symbol}; it has {', '.join(sections)}")
    info = sections.get(".nv.info")
    found = _numbers(image[info.offset : info.offset + info.size]) if info else []
    registers = [value for kind, value in found if kind == _REGISTERS]
    frames = [value for kind, value in found if kind == _FRAME_SIZE]
    return Resources(max([*registers, code.info >> 24]), max(frames, default=0))


def _sections(image: bytes) -> Iterator[_Section]:
    if image[:5] != b"\x7fELF\x02":
        raise CodegenError("the cubin is no ELF file of 64 bits")
    (start,) = struct.unpack_from("<Q", image, 0x28)
    size, count, names = struct.unpack_from("<HHH", image, 0x3A)
    (table,) = struct.unpack_from("<Q", image, start + names * size + 0x18)
    for at in range(count):
        head = start + at * size
        (name,) = struct.unpack_from("<I", image, head)
        offset, length, _, info = struct.unpack_from("<QQII", image, head + 0x18)
        text = image[table + name : image.index(b"\0", table + name)].decode()
        yield _Section(text, offset, length, info)


def _numbers(attributes: bytes) -> list[tuple[int, int]]:
    """The kinds and numbers of attributes that give a number to a symbol."""
    found: list[tuple[int, int]] = []
    at = 0
    while at + 4 <= len(attributes):
        form, kind, size = struct.unpack_from("<BBH", attributes, at)
        at += 4
        if form != _SIZED:
            continue
        if size == 8:
            found.append((kind, struct.unpack_from("<II", attributes, at)[1]))
        at += size
    return found
