"""Worker processes: they outlive stop signals, which are for the main process, and end with it."""

import os
import signal
import threading

TICK = 1.0
"""Seconds after which a worker sees that its parent has gone."""


def follow(parent: int) -> None:
    """Leave SIGINT and SIGTERM to process ``parent``, and end this one when that one says so or has gone, at any time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, TICK)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
