"""What the store knows of a run's members, for a person to read; and the request to end."""

import time
from typing import Any

from fgpipe.elastic.directory import BEAT, STOP
from fgpipe.elastic.places import Places
from fgpipe.elastic.presence import POLL, Presence, beat, member
from fgpipe.elastic.secret import RunSecret
from fgpipe.elastic.store import StoreClient
from fgpipe.errors import LinkError, UserError

COLUMNS = ("updates", "lost", "extra", "fallback", "dropped", "missed", "refused", "restarts")
"""Counts that are shown, by their names in `elastic.tally`."""


class Status:
    """A look at a run from outside.

    Raises:
        UserError: the folder is not that of a run of elastic blocks.
        OSError: its key cannot be read.
    """

    def __init__(self, places: Places, store: str | None = None) -> None:
        """Args: store: HOST:PORT; None is where the run began with it."""
        if not places.facts.exists() or not places.key.exists():
            raise UserError(f"{places.run}: allowed: the folder of a run with elastic.block")
        config = places.agreement()["config"]
        self._blocks = len(config["model"]["modules"] or ()) or config["model"]["blocks"]
        address = store or config["elastic"]["store"]
        self._store = StoreClient(address, RunSecret.of(places.key, make=False))

    def living(self) -> dict[int, dict[str, Any]]:
        """What each living member says of itself, by block.

        Raises:
            LinkError: the store does not answer.
        """
        before = self._beats()
        time.sleep(3 * BEAT)
        now = self._beats()
        return {j: each for j, each in now.items() if each != before.get(j) and not each.get("left")}

    def _beats(self) -> dict[int, dict[str, Any]]:
        found = {j: self._store.get(beat(j)) for j in range(self._blocks)}
        return {j: each for j, each in found.items() if each is not None}

    def table(self) -> str:
        """A line for each block; errors as for `living`."""
        living, last, members = self.living(), self._beats(), self._members()
        front = max((each.get("position", 0) for each in living.values()), default=0)
        heads = ("block", "", "steps/s", "position", "lag", *COLUMNS, "where")
        rows: list[tuple[str, ...]] = [heads]
        for j in range(self._blocks):
            said, there = living.get(j) or last.get(j) or {}, members.get(j)
            state = "away" if j not in living else "done" if said.get("done") else "lives"
            position, rate = said.get("position"), said.get("rate", 0.0) if j in living else 0.0
            lag = "" if position is None else str(max(0, front - position))
            counts = (str(said.get(name, "")) for name in COLUMNS)
            shown = "" if position is None else str(position)
            rows.append((str(j), state, f"{rate:.1f}", shown, lag, *counts, "" if there is None else str(there)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.rjust, row[:-1], widths)) + f"  {row[-1]}" for row in rows)

    def stop(self, deadline: float) -> list[int]:
        """Ask all members to save and leave, and wait until they have.

        Returns:
            Blocks that have not, within the deadline.

        Raises:
            LinkError: the store does not answer, and members may live.
        """
        give_up = time.monotonic() + deadline
        asked, living = dict[int, Presence](), set(range(self._blocks))
        while living and time.monotonic() < give_up:
            try:
                asked = self._members()
                self._store.set(STOP, {str(j): each.generation for j, each in asked.items()})
                living = set(self.living())
            except LinkError:
                if asked and all(each.has_ended for each in asked.values()):
                    return []  # the last member gone, `launch/elastic` ends the store
                raise
            time.sleep(POLL)
        return sorted(living)

    def _members(self) -> dict[int, Presence]:
        found = {j: Presence.of(self._store.get(member(j))) for j in range(self._blocks)}
        return {j: each for j, each in found.items() if each is not None}
