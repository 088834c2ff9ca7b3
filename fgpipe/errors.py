"""The one exception that users see as a line instead of a traceback."""


class UserError(Exception):
    """Bad input: one line that names the key or the file, the value, and what is allowed.

    `fgpipe.train` prints the line and exits with code 2.

    Attributes:
        alone: only this process can have met it, so that no other reports it.
    """

    alone = False


def bad_value(key: str, value: object, allowed: str) -> UserError:
    """The error for a configuration key: `key=value: allowed: ...`."""
    shown = f"{value:g}" if isinstance(value, float) else value
    return UserError(f"{key}={shown}: allowed: {allowed}")
