"""What a study runs, and in which order: first what tells most.

PyTorch and MLflow are not imported here, because the command line imports this package.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple


class Cell(NamedTuple):
    """A run on labels.

    Attributes:
        method: Its task.
        start: The name of its initial weights.
        fraction: The share of the labeled images.
        seed: Its seed.
    """

    method: str
    start: str
    fraction: float
    seed: int

    def __str__(self) -> str:
        return f"{self.method} from {self.start} with {100 * self.fraction:g}% of the labels, seed {self.seed}"


class Plan(NamedTuple):
    """What a study crosses. The order of the values is that of the configuration."""

    methods: tuple[str, ...]
    starts: tuple[str, ...]
    fractions: tuple[float, ...]
    seeds: tuple[int, ...]

    def number(self, cell: Cell) -> int:
        """Return the number of a cell, from 0, which does not depend on the order of the runs."""
        place = self.seeds.index(cell.seed)
        for values, value in ((self.fractions, cell.fraction), (self.methods, cell.method), (self.starts, cell.start)):
            place = place * len(values) + values.index(value)
        return place

    @property
    def num_cells(self) -> int:
        return len(self.methods) * len(self.starts) * len(self.fractions) * len(self.seeds)

    def round(
        self, seed: int, settled: Collection[tuple[str, str]], doubts: Mapping[tuple[str, float], float]
    ) -> list[list[Cell]]:
        """Return the cells of a seed, in groups of one method and fraction whose runs are compared with each other.

        Args:
            seed: The seed.
            settled: Methods and starts that need no further seed.
            doubts: How doubtful the differences at a method and a fraction are. The most doubtful ones come first;
                without any, the fractions are spread out.
        """
        order = spread_out(self.fractions)
        pairs = [(method, fraction) for fraction in order for method in self.methods]
        pairs.sort(key=lambda pair: -doubts.get(pair, 0.0))  # stable
        groups = [
            [Cell(method, start, fraction, seed) for start in self.starts if (method, start) not in settled]
            for method, fraction in pairs
        ]
        return [group for group in groups if group]


def join(groups: Sequence[Sequence[Cell]], at_once: int) -> list[list[Cell]]:
    """Join groups of cells into batches that are given to the launcher together, so that all of it is busy."""
    batches: list[list[Cell]] = []
    for group in groups:
        if batches and len(batches[-1]) % at_once > 0:
            batches[-1] += group
        else:
            batches.append(list(group))
    return batches


def spread_out(fractions: Sequence[float]) -> list[float]:
    """Order label fractions so that the first ones already outline the curve: ends first, then the largest gaps.

    Gaps are ratios. The smallest fraction comes first, because pretraining matters most there.
    """
    left = sorted(fractions)
    order = [left.pop(0)]
    if left:
        order.append(left.pop())
    while left:
        order.append(max(left, key=lambda f: min(max(f / other, other / f) for other in order)))
        left.remove(order[-1])
    return order
