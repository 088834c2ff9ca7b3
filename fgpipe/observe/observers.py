"""Everything that watches the steps of one process."""

from dataclasses import dataclass

from fgpipe.observe.events import StepEvent
from fgpipe.observe.ledger import Ledger
from fgpipe.observe.metrics import Metrics
from fgpipe.observe.timeline import Timeline


@dataclass(frozen=True)
class Observers:
    """Measurements that a process makes of its steps."""

    metrics: Metrics
    ledger: Ledger
    timeline: Timeline

    @classmethod
    def of(cls, blocks: int) -> "Observers":
        """Those of a net of so many blocks, without a timeline."""
        return cls(Metrics(blocks), Ledger(blocks), Timeline())

    def observe(self, event: StepEvent) -> None:
        """Take in an event of a step."""
        self.metrics.observe(event)
