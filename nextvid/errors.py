"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """Wrong input: a sentence that says what was wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
