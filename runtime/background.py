"""Threads for what nobody waits for."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress

_NICE = 10  # a tenth of a core where requests want it, all of it where nothing runs


def start_in_background(name: str, work: Callable[[], object]) -> threading.Thread:
    """Begin work on a thread that gives way to others, and ends with the process."""

    def run() -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        work()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
