"""The post of one process: every message between blocks goes through it, and nothing else travels."""

from dataclasses import replace

from fgpipe.wire.batch import Batch, canonical, within_process
from fgpipe.wire.feedback.messages import Feedback, Request, Weights
from fgpipe.wire.feedback.zmq import ZmqFeedback
from fgpipe.wire.gradients import Gradient
from fgpipe.wire.inbox import Inbox
from fgpipe.wire.links.sender import Sender
from fgpipe.wire.streams import Streams


class Post:
    """Carries batches up, and readings or gradients back: in memory within the process, by gloo or NCCL to others, and
    readings by zmq.

    Args:
        inbox: where messages for the blocks of this process arrive, whoever sent them.
        upwards: to the process above; None if there is none.
        feedback: to and from the other processes; None if there are none.
        downwards: of gradients, to the process below; None if there is none.
        streams: of this process.
    """

    def __init__(
        self,
        inbox: Inbox,
        upwards: Sender | None = None,
        feedback: ZmqFeedback | None = None,
        downwards: Sender | None = None,
        streams: Streams | None = None,
    ) -> None:
        self.inbox, self._upwards, self._feedback, self._downwards = inbox, upwards, feedback, downwards
        self.streams = streams or Streams()

    def up(self, block: int, batch: Batch) -> None:
        """Send what a block makes of a batch to the one above.

        Waits until there is room. The batch must not be changed afterwards.

        Raises:
            LinkError: the process above is gone, or takes nothing.
        """
        if self.inbox.holds(block + 1):
            self.inbox.deliver_batch(block + 1, self.streams.handed(within_process(batch)))
        else:
            assert self._upwards is not None, "the last block sends nothing upwards"
            self._upwards.send(batch)

    def back(self, feedback: Feedback) -> None:
        """Send readings to the block that asked; does not wait for it.

        Raises:
            FeedbackError: its process takes no messages, or it did not ask for these.
        """
        if self.inbox.waits_for(feedback.receiver) is not None:
            self.inbox.deliver_feedback(feedback)
        else:
            assert self._feedback is not None, "all blocks are in this process"
            self._feedback.send(feedback)

    def down(self, gradient: Gradient) -> None:
        """Send a gradient to the block below, whatever that one does; it must not be changed afterwards.

        Raises:
            LinkError: the process below is gone.
        """
        if self.inbox.waits_for(gradient.receiver) is not None:
            self.inbox.deliver_gradient(replace(gradient, x=canonical(gradient.x)))
        else:
            assert self._downwards is not None, "the lowest block sends nothing downwards"
            self._downwards.send(gradient.as_batch())

    def weights(self, weights: Weights) -> None:
        """Send weights to the twin of a block below; does not wait for it.

        Raises:
            FeedbackError: its process takes no messages.
        """
        if self.inbox.has_twin(weights.receiver):
            self.inbox.deliver_weights(weights)
        else:
            assert self._feedback is not None, "all blocks are in this process"
            self._feedback.send_weights(weights)

    def ask(self, request: Request) -> None:
        """Ask another process for readings again; within one nothing is lost, and what is not here is yet to come."""
        if self._feedback is not None and not self.inbox.holds(request.receiver):
            self._feedback.ask(request)

    def close(self) -> None:
        """Wait until everything that was sent has left."""
        for sender in (self._upwards, self._downwards):
            if sender is not None:
                sender.close()
        if self._feedback is not None:
            self._feedback.close()
