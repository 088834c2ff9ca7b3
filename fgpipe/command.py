"""The shell of every command `python -m fgpipe.X`: what ends it, in one line and an exit code, and where it prints.

Exit codes: what the command's `main` returns; 1, a run that it started has failed, or the work is done and its output
cannot be written; 2, bad input; 130, interrupted by Ctrl-C.
"""

import errno
import gc
import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from fgpipe.errors import OutputError, RunError, UserError, one_line, reason

Main = Callable[[list[str]], int]
"""A command's arguments -> its exit code."""
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
REPORT_BY_FIRST = 10.0
"""Seconds that other ranks leave the first one of their host to report bad input, before they end too."""
EXTRAS = ("matplotlib", "scipy", "jinja2")
"""Packages of the extra `report`; the extra `study` has the first."""
ENDS = (UserError, OutputError, RunError, KeyboardInterrupt, ModuleNotFoundError, subprocess.CalledProcessError)
"""Ends of a command that are said in one line."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of disks, whichever file it is."""
STARTED = "FGPIPE_STARTED"
"""Variable of processes that another command has started, which says for all that it is interrupted."""


def start(module: str) -> NoReturn:
    """Run a command, which is the `main` of a module, and exit.

    For the first lines of the module that is `__main__`: an interrupt in its imports, which take seconds, is one line
    too. What imports make stays, so that the collector does not look for garbage in it, which takes a sixth of the start.
    """
    stdout = _prepare()
    gc.disable()
    try:
        main: Main = import_module(module).main
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("fgpipe") or error.name in EXTRAS:
            sys.exit(_ended(error))
        say(f"{sys.executable} has no {error.name}: activate the environment that fgpipe is installed in (README.md)")
        sys.exit(BAD_INPUT)
    gc.freeze()
    gc.enable()
    _finish(main, stdout)


def conclude(main: Main) -> NoReturn:
    """Run a command and exit, as `start` does, in a program whose imports are done."""
    _finish(main, _prepare())


def _prepare() -> "_Lasting | None":
    """Take over streams and interrupts; returns stdout."""
    stdout = _take_over_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    return stdout


def _finish(main: Main, stdout: "_Lasting | None") -> NoReturn:
    code = main(sys.argv[1:])
    sys.stdout.flush()
    if stdout is not None and stdout.error is not None:
        say(f"stdout cannot be written: {reason(stdout.error)}")
        code = code or FAILED
    sys.exit(code)


def command(main: Main) -> Main:
    """A command's `main` that returns its exit code whatever ends it, but for mistakes of ours."""

    @wraps(main)
    def run(arguments: list[str]) -> int:
        try:
            with _interruptible():
                return main(arguments)
        except ENDS as error:
            return _ended(error)
        except OSError as error:
            if error.errno not in FULL:
                raise
            return _ended(error)

    return run


def leave(code: int) -> NoReturn:
    """Exit at once, as after a run that has failed: threads may wait for peers that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def say(line: str) -> None:
    """Print a line of ours on stderr."""
    print(f"fgpipe: {line}", file=sys.stderr, flush=True)


def _ended(error: BaseException) -> int:
    """The exit code for what ended a command, which is said in one line."""
    if isinstance(error, KeyboardInterrupt):
        return _interrupted(str(error))
    if isinstance(error, subprocess.CalledProcessError):
        say("a run has failed, as said above")
        return FAILED
    if isinstance(error, ModuleNotFoundError):
        if error.name not in EXTRAS:
            raise error
        say(f"{error.name} is not installed: pip install 'fgpipe[report]'")
        return BAD_INPUT
    if isinstance(error, OSError):
        say(": ".join(filter(None, (error.filename and str(error.filename), reason(error)))))
        return FAILED
    if isinstance(error, UserError) and not error.alone and os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(REPORT_BY_FIRST)  # torchrun ends the others as soon as the first has ended
    say(one_line(error))
    if isinstance(error, UserError):
        _tell_torchrun(one_line(error))
        return BAD_INPUT
    return FAILED


def _tell_torchrun(line: str) -> None:
    """Leave the line where torchrun looks for the cause, which it repeats at the end of its report."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with suppress(OSError):
            message = {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}
            Path(file).write_text(json.dumps({"message": message}))


def _interrupted(hint: str) -> int:
    if _speaks():
        say(f"interrupted; {hint}" if hint else "interrupted")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # threads may wait for peers that are gone
    return INTERRUPTED


def _speaks() -> bool:
    """This process is the one that says that the command is interrupted."""
    return os.environ.get("RANK", "0") == "0" and STARTED not in os.environ


@contextmanager
def _interruptible() -> Iterator[None]:
    """Make an interrupt of the work within an exception; before and after the work there is nothing to undo."""
    if signal.getsignal(signal.SIGINT) is not _leave:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _leave)


def _leave(signum: int, frame: FrameType | None) -> None:
    if _speaks():
        os.write(2, b"fgpipe: interrupted\n")
    os._exit(INTERRUPTED)


class _Lasting(io.BufferedWriter):
    """A descriptor that takes all that is written to it: when nobody reads it any more, work goes on."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(io.FileIO(descriptor, "w", closefd=False))
        self.error: OSError | None = None
        """Reason why something is missing in the file that it is."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self._pass_over(error)
            return memoryview(data).nbytes

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._pass_over(error)

    def _pass_over(self, error: OSError) -> None:
        gone = (errno.EPIPE, errno.ECONNRESET, errno.EIO)  # of a pipe, a socket and a terminal
        if error.errno in gone and not stat.S_ISREG(os.fstat(self.fileno()).st_mode):
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())
        else:
            self.error = error


def _take_over_streams() -> _Lasting | None:
    """Make stdout and stderr lasting ones; returns stdout's.

    A descriptor that is closed is opened to nowhere, so that no file or socket gets its number. A stream that a program has
    put in their place is its own.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stderr is sys.__stderr__:
        sys.stderr, _ = _lasting(sys.stderr, 2)
    if sys.stdout is not sys.__stdout__:
        return None
    sys.stdout, stdout = _lasting(sys.stdout, 1)
    return stdout


def _lasting(stream: Any, descriptor: int) -> tuple[Any, _Lasting | None]:
    if stream is None:
        return open(os.devnull, "w"), None
    with suppress(OSError):
        stream.flush()
    lasting = _Lasting(descriptor)
    names = ("encoding", "errors", "line_buffering", "write_through")
    return io.TextIOWrapper(lasting, **{name: getattr(stream, name) for name in names}), lasting
