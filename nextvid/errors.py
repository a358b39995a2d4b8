"""The one exception that means "the user can mend this", and the words it uses."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Wrong input: a sentence that says what was wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def nearest(word: str, known: Iterable[object]) -> str:
    """`` (did you mean 'x'?)`` where something known is close to ``word``, else nothing."""
    close = difflib.get_close_matches(word, [str(k) for k in known], n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


class Stopped(Exception):
    """The work was stopped by a signal, and everything is saved: the same command goes on."""


class LostError(Exception):
    """Another process that this one works with has ended, or does not answer: the same command goes on."""
