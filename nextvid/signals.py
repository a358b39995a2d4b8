"""Stop signals as exceptions, for work that keeps what it has done as it goes, or collected, for work that saves first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from nextvid.errors import Stopped


@contextmanager
def stoppable(what: str) -> Iterator[None]:
    """Within it SIGINT and SIGTERM raise ``Stopped``; ``what``: what is kept, e.g. "120 files are scanned"."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, _frame: FrameType | None) -> None:
        raise Stopped(f"stopped by {signal.Signals(number).name}; {what}")

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def collected() -> Iterator[list[int]]:
    """Within it collect SIGINT and SIGTERM; a second SIGINT interrupts at once."""
    received: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
