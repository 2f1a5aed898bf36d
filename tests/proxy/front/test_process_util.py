"""What keeps processes running: words for why one ended."""

import pytest

from understudy.proxy.front.process_util import describe_exit


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
