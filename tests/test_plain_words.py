from __future__ import annotations

import pytest

from tests.helpers.plain_words import faults


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('"""Of the run."""', "without a subject: Of"),
        ('class A:\n    """That a run has."""', "without a subject: That"),
        ('def f():\n    """By which it is found."""', "without a subject: By which"),
        ('class A:\n    seed: int = 0\n    """In order."""', "without a subject: In"),
        ('A = 1\n"""Its unit."""', "without a subject: Its"),
        ("MOST_LAYERS = 1", "'MOST_LAYERS' does not name"),
        ("def f(most): ...", "'most' does not name"),
        ("def told(): ...", "'told' does not name"),
        ("for one in range(2): ...", "'one' does not name"),
        ("self.found = 1", "'found' does not name"),
        ("try: ...\nexcept OSError as it: ...", "'it' does not name"),
        ("import numpy as ours", "'ours' does not name"),
    ],
)
def test_a_docstring_without_a_subject_and_a_vague_name_are_refused(line: str, reason: str) -> None:
    (fault,) = faults(line)
    assert reason in fault[1]


def test_whole_sentences_and_nouns_are_not_refused() -> None:
    assert not list(
        faults(
            '''
"""What a run reports: one line each."""

class Report:
    """A report of one epoch. Of its fields, the loss is a mean."""

    seed: int = 0
    """Seed of the weights, in the order of layers."""

    def losses(self, max_epochs: int) -> list[float]:
        """In the order of epochs, the mean loss of each."""
        found_in_total = one_hot = 0
        self.total = most(self.said, one_hot)
        print()
        """That is no docstring."""
'''
        )
    )
