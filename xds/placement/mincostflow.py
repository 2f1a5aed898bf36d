"""Integral flow of least cost in a small network.

The numbers of standbys and backups are rounded with it: capacities are whole numbers, so the result is too. It uses the
primal-dual method: shortest distances under reduced costs, then all paths of that length at once. The result depends
only on the order in which arcs were added. It is exact, and it is not meant for networks of millions of arcs.
"""

from heapq import heappop, heappush

_FAR = 1 << 62


class MinCostFlow:
    """A network of ``nodes`` numbered nodes; costs must not be negative."""

    def __init__(self, nodes: int) -> None:
        self._arcs: list[list[int]] = [[] for _ in range(nodes)]
        self._head: list[int] = []
        self._left: list[int] = []
        self._cost: list[int] = []
        self._potential = [0] * nodes

    def add(self, tail: int, head: int, capacity: int, cost: int) -> int:
        """Add an arc and return its number, for :meth:`used`."""
        number = len(self._head)
        self._arcs[tail].append(number)
        self._arcs[head].append(number + 1)
        self._head += (head, tail)
        self._left += (capacity, 0)
        self._cost += (cost, -cost)
        return number

    def used(self, arc: int) -> int:
        """How much flows through an arc."""
        return self._left[arc + 1]

    def run(self, source: int, sink: int) -> int:
        """Send as much as possible from ``source`` to ``sink`` at the least cost; returns how much."""
        total = 0
        while self._measure(source, sink):
            total += self._fill(source, sink)
        return total

    def _measure(self, source: int, sink: int) -> bool:
        """Move the potentials by the distances from ``source``; False if ``sink`` cannot be reached."""
        potential, head, left, cost = self._potential, self._head, self._left, self._cost
        distance = [_FAR] * len(potential)
        distance[source] = 0
        queue = [(0, source)]
        while queue:
            here, node = heappop(queue)
            if here > distance[node]:
                continue
            if node == sink:
                break
            lifted = here + potential[node]
            for arc in self._arcs[node]:
                if left[arc]:
                    other = head[arc]
                    there = lifted + cost[arc] - potential[other]
                    if there < distance[other]:
                        distance[other] = there
                        heappush(queue, (there, other))
        reach = distance[sink]
        if reach == _FAR:
            return False
        for node, there in enumerate(distance):
            potential[node] += min(there, reach)
        return True

    def _fill(self, source: int, sink: int) -> int:
        """Push along arcs of reduced cost zero until no such path is left; returns how much was pushed."""
        head = self._head
        following = [0] * len(self._arcs)
        closed = [False] * len(self._arcs)
        closed[source] = True
        path: list[int] = []
        node, total = source, 0
        while True:
            if node == sink:
                total += self._push(path)
                for arc in path:
                    closed[head[arc]] = False
                path.clear()
                node = source
            arc = self._step(node, following, closed)
            if arc >= 0:
                path.append(arc)
                node = head[arc]
                closed[node] = True
            elif path:
                node = head[path.pop() ^ 1]
                following[node] += 1
            else:
                return total

    def _step(self, node: int, following: list[int], closed: list[bool]) -> int:
        """The next arc worth taking from ``node``, or -1."""
        arcs, potential = self._arcs[node], self._potential
        head, left, cost = self._head, self._left, self._cost
        lifted = potential[node]
        for place in range(following[node], len(arcs)):
            arc = arcs[place]
            other = head[arc]
            if left[arc] and not closed[other] and lifted + cost[arc] == potential[other]:
                following[node] = place
                return arc
        following[node] = len(arcs)
        return -1

    def _push(self, path: list[int]) -> int:
        amount = min(self._left[arc] for arc in path)
        for arc in path:
            self._left[arc] -= amount
            self._left[arc ^ 1] += amount
        return amount
