"""Leave to use AMX tile registers, which Linux gives a process that asks for it."""

import ctypes
import errno
import os
import platform

_ARCH_PRCTL = 158  # x86-64
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18


def allow_tiles() -> bool:
    """Ask for the tile registers, for all threads from now on; whether they may be used.

    False on a processor that has none, and where the kernel is too old (before 5.16) or does not
    let this process have them. Documentation/arch/x86/xstate.rst of Linux describes the call.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0


def tiles_refused() -> str:
    """Why the last `allow_tiles` of this thread was refused, in the system's words."""
    number = ctypes.get_errno()
    return f"{errno.errorcode.get(number, number)}: {os.strerror(number)}"
