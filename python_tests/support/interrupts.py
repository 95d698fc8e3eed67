"""Interrupts at a chosen moment."""

from nft_ext.montecarlo.execution.chip_evaluator import ChipEvaluator


def interrupt_after(monkeypatch, passes):
    """Ctrl-C when an evaluation begins the pass after so many."""
    original, left = ChipEvaluator.tallies, [passes]

    def tallies(self, draws, done):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return original(self, draws, done)

    monkeypatch.setattr(ChipEvaluator, "tallies", tallies)
