"""Connected components: which of n items belong together, directly or by way of others."""

from __future__ import annotations

from collections.abc import Iterable


class Components:
    """Union-find over the items 0 to n - 1 (Tarjan 1975, with path halving and union by size)."""

    def __init__(self, count: int) -> None:
        self._above = list(range(count))
        self._size = [1] * count

    def root(self, item: int) -> int:
        """The item that stands for the component of `item`."""
        above = self._above
        while above[item] != item:
            above[item] = item = above[above[item]]
        return item

    def join(self, a: int, b: int) -> None:
        """Make one component of those of `a` and `b`."""
        a, b = self.root(a), self.root(b)
        if a == b:
            return
        if self._size[a] < self._size[b]:
            a, b = b, a
        self._above[b] = a
        self._size[a] += self._size[b]

    def joined(self, a: int, b: int) -> bool:
        return self.root(a) == self.root(b)

    def numbers(self, items: Iterable[int]) -> tuple[int, ...]:
        """The component of each of `items`, numbered from 0 in the order of first appearance."""
        numbers: dict[int, int] = {}
        return tuple(numbers.setdefault(self.root(item), len(numbers)) for item in items)
