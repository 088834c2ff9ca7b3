"""Living workers of torchrun on this host, found from outside by their command lines."""

from contextlib import suppress

import psutil


def workers_with(word: str) -> list[tuple[int, psutil.Process]]:
    """Find rank and process of this user's workers with a word in their command line; torchrun itself has no rank."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if word in process.cmdline() and (rank := process.environ().get("RANK")) is not None:
                found.append((int(rank), process))
    return found
