"""What keeps processes running: patience that grows, and words for why one ended."""

import pytest

from understudy.proxy.front.process_util import LONGEST_DELAY, describe_exit, restart_delay


def test_the_delay_doubles_up_to_a_bound():
    assert [restart_delay(deaths, 0.1) for deaths in (1, 2, 3)] == [0.1, 0.2, 0.4]
    assert restart_delay(1000, 0.1) == LONGEST_DELAY


@pytest.mark.parametrize(
    ("code", "words", "told"),
    [
        (-9, "whatever", "ended by SIGKILL"),
        (-99, "", "ended by signal 99"),
        (2, "port taken", "exit code 2: port taken"),
        (2, "", "exit code 2"),
        (0, "bye", "exit code 0"),
    ],
)
def test_an_end_is_told_in_words(code, words, told):
    assert describe_exit(code, words) == told
