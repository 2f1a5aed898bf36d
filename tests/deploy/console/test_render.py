"""The slot map as HTML: rows of cells, one tab stop, and text that stays text."""

import pytest

from understudy.deploy.console.render import cells

AT_REST = {"slot": 0, "mark": "A", "tone": 1, "pattern": 2, "moving": False, "owner": "cart-1", "copies": 2}


@pytest.mark.parametrize(
    ("differs", "look"),
    [
        ({}, "t1 p2"),
        ({"moving": True}, "t1 p2 moving"),
        ({"copies": 1}, "t1 p2 single"),
        ({"owner": None, "mark": "?", "tone": -1, "pattern": 0, "copies": 0}, "t-1 p0"),
    ],
)
def test_a_cell_shows_its_active_and_what_is_unusual(differs, look):
    slot = {**AT_REST, **differs}
    only = f'<div role="gridcell" tabindex="0" id="s0" class="{look}">{slot["mark"]}</div>'
    assert cells([slot], 16) == f'<div role="row">{only}</div>'


def test_rows_have_so_many_cells_and_the_map_one_tab_stop():
    text = cells([{**AT_REST, "slot": slot} for slot in range(40)], 16)
    assert [row.count("gridcell") for row in text.split("\n")] == [16, 16, 8]
    assert text.count("tabindex") == 1


def test_a_mark_is_text():
    assert "<b>" not in cells([{**AT_REST, "mark": "<b>"}], 16)
