"""A guess of one's own: torchrun --nproc_per_node=8 docs/examples/own_guess.py [key=value ...]

The signs of the local gradient, each tensor at the gradient's mean size; `guess.blend=0.5` mixes in the gradient itself.
It gets lanes, transport, oracle and checkpoints as the guesses of the paper do.
"""

from dataclasses import dataclass

import fgpipe


@fgpipe.guess("signs")
@dataclass(frozen=True)
class Signs(fgpipe.Guess):
    blend: float = 0.0

    head = fgpipe.GuessHead.TRAINED

    def propose(self, view):
        gradient = view.gradient()
        signs = [g.sign() * g.abs().mean() for g in gradient]
        return [s.lerp(g, self.blend) for s, g in zip(signs, gradient)]


if __name__ == "__main__":
    fgpipe.main(["guess=signs"])
