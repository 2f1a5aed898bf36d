from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from understudy.xds.placement.mincostflow import MinCostFlow

SIZE = 5
NUMBERS = st.lists(st.lists(st.integers(0, 9), min_size=SIZE, max_size=SIZE), min_size=SIZE, max_size=SIZE)


@given(NUMBERS)
def test_an_assignment_costs_as_little_as_the_best_of_all(costs):
    flow = MinCostFlow(2 * SIZE + 2)
    source, sink = 2 * SIZE, 2 * SIZE + 1
    for node in range(SIZE):
        flow.add(source, node, 1, 0)
        flow.add(SIZE + node, sink, 1, 0)
    arcs = {
        (row, column): flow.add(row, SIZE + column, 1, costs[row][column])
        for row in range(SIZE)
        for column in range(SIZE)
    }

    assert flow.run(source, sink) == SIZE

    paid = sum(costs[row][column] * flow.used(arc) for (row, column), arc in arcs.items())
    assert paid == min(sum(costs[row][order[row]] for row in range(SIZE)) for order in permutations(range(SIZE)))


@given(NUMBERS)
def test_as_much_flows_as_the_narrowest_cut_lets_through(capacities):
    flow = MinCostFlow(SIZE)
    for tail in range(SIZE):
        for head in range(SIZE):
            if tail != head:
                flow.add(tail, head, capacities[tail][head], 0)

    cuts = []
    for chosen in range(1 << (SIZE - 2)):
        near = {0} | {node for node in range(1, SIZE - 1) if chosen >> (node - 1) & 1}
        cuts.append(sum(capacities[a][b] for a in near for b in range(SIZE) if b not in near))
    assert flow.run(0, SIZE - 1) == min(cuts)
