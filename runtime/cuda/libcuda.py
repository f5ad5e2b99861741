"""The CUDA driver API (libcuda.so.1, by ctypes): what the driver itself brings is all that is
needed.

Names, values and signatures are those of cuda.h, CUDA 12 (CUDA Driver API reference manual).
"""

import ctypes
from typing import Any

from ..errors import ArtifactError, StepError

LIBRARY = "libcuda.so.1"
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
PROCESSORS = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING


class Cuda:
    """The functions of the library; one that answers with a status raises StepError.

    `library` stands in for libcuda in tests. Raises ArtifactError where there is none.
    """

    def __init__(self, library: Any = None) -> None:
        self._library = library if library is not None else _loaded()

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call a function by name."""
        status = getattr(self._library, name)(*arguments)
        if status:
            raise StepError(f"{name}: {self._reason(status)}")

    def _reason(self, status: int) -> str:
        text = ctypes.c_char_p()
        if self._library.cuGetErrorString(status, ctypes.byref(text)) or text.value is None:
            return f"error {status}"
        return f"{text.value.decode()} (error {status})"


def _loaded() -> Any:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise ArtifactError(f"no CUDA device here: {LIBRARY} cannot be loaded: {error}") from None
