"""The exceptions that users see as a line instead of a traceback, and errors' messages as a part of a line."""


class UserError(Exception):
    """Bad input: one line that names the key or the file, the value, and what is allowed.

    Commands print the line and exit with code 2.

    Attributes:
        alone: only this process can have met it, so that no other reports it.
    """

    alone = False


class RunError(RuntimeError):
    """An end of a run whose text says it all.

    Attributes:
        rank: the process at fault; None if it can be any.
        block: the block at fault; None if it can be any.
    """

    def __init__(self, what: str, rank: int | None = None, block: int | None = None) -> None:
        super().__init__(what)
        self.rank, self.block = rank, block


class LinkError(RunError):
    """Another process went away, stayed silent past the deadline, or sent something that is not a batch of ours."""


class FeedbackError(RunError):
    """A message of the feedback plane is malformed, out of sequence, not for us, lost, or not finite."""


class StalledError(RunError):
    """Nothing arrived within the deadline."""


class NotFiniteError(RunError):
    """A block made a number that is not finite, from numbers that were."""


class OutputError(Exception):
    """Output of work that is done cannot be written: one line that names the file and the reason.

    Commands print the line and exit with code 1.
    """


def bad_value(key: str, value: object, allowed: str) -> UserError:
    """The error for a configuration key: `key=value: allowed: ...`."""
    shown = f"{value:g}" if isinstance(value, float) else value
    return UserError(f"{key}={shown}: allowed: {allowed}")


def one_line(error: BaseException) -> str:
    """An error's message on one line; the name of its type if there is none."""
    lines = (line.strip() for line in str(error).splitlines())
    return " ".join(filter(None, lines)) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not empty; PyTorch's and gloo's go on with a stack trace."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)


def typed_line(error: BaseException) -> str:
    """`Type: message` on one line; the name of the type alone if there is no message."""
    name, line = type(error).__name__, one_line(error)
    return line if line == name else f"{name}: {line}"


def reason(error: OSError) -> str:
    """Reason, for a line that names the file: without the error's number and path."""
    return error.strerror or one_line(error)
