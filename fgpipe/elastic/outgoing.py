"""What leaves a member: batches to the block above, readings to those that ask here."""

from fgpipe.elastic.feedback import FeedbackOut
from fgpipe.elastic.links import Uplink
from fgpipe.wire.batch import Batch
from fgpipe.wire.feedback.messages import Feedback


class Outgoing:
    """Both planes of a member.

    Args: uplink: None for the last block.
    """

    def __init__(self, uplink: Uplink | None, feedback: FeedbackOut) -> None:
        self._uplink, self._feedback = uplink, feedback

    def up(self, batch: Batch, step: float) -> None:
        """Send a batch; see `Uplink.send`."""
        if self._uplink is not None:
            self._uplink.send(batch, step)

    def back(self, feedback: Feedback) -> None:
        """Send readings; see `FeedbackOut.send`."""
        self._feedback.send(feedback)

    def close(self) -> None:
        """Leave."""
        if self._uplink is not None:
            self._uplink.close()
        self._feedback.close()
