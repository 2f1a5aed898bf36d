"""Logs as JSON: one object per line with the same fields in every process, whatever was logged."""

import io
import json
import logging
import re
from pathlib import Path

from tests.harness.commands import commands
from tests.harness.waiting import free_port, until
from understudy.deploy.common.logs import JsonFormatter
from understudy.statesync.process.log_context import LOG_POOL

WITH_ZONE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}([+-]\d\d:?\d\d|Z)")


def logged(log, **about):
    """The objects that ``log`` writes with a logger of its own."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonFormatter(about))
    logger = logging.getLogger("tests.logs")
    logger.propagate = False
    logger.handlers = [handler]
    log(logger)
    return [json.loads(line) for line in out.getvalue().split("\n")[:-1]]


def test_a_record_has_the_fields_of_its_process():
    (one,) = logged(lambda logger: logger.warning("slot %d of %s", 3, "x"), pool="cart", member="cart-1", site="")
    assert WITH_ZONE.fullmatch(one.pop("time"))
    assert one == {
        "level": "warning",
        "logger": "tests.logs",
        "message": "slot 3 of x",
        "pool": "cart",
        "member": "cart-1",
    }


def test_lines_and_tracebacks_stay_in_one_line():
    hostile = 'a\nb\r\u2028"\x1b[2J\ud800'
    first, second = logged(
        lambda logger: (logger.warning("%s", hostile), logger.error("failed", exc_info=ValueError(hostile)))
    )
    assert first["message"] == hostile
    assert second["exception"].startswith("ValueError: a\nb")


def test_a_task_that_serves_a_pool_says_which():
    def log(logger):
        token = LOG_POOL.set("b")
        logger.warning("in b")
        LOG_POOL.reset(token)
        logger.warning("in none")

    assert [one.get("pool") for one in logged(log)] == ["b", None]


async def test_a_front_and_its_envoy_log_one_object_per_line(tmp_path: Path):
    async with commands(tmp_path) as running:
        listen, nobody = (f"127.0.0.1:{free_port()}" for _ in range(2))
        await running.start(
            "edge",
            *("--log-format", "json", "envoy", "--node", "edge-1", "--pool", "cart"),
            *("--control", nobody, "--listen", listen, "--admin", f"127.0.0.1:{free_port()}"),
        )

        async def told() -> bool:
            text = running.log("edge")
            return "gRPC config stream" in text

        await until(told, 60, "Envoy says that it has no control server")
        lines = [json.loads(line) for line in running.log("edge").split("\n")[:-1]]
    for line in lines:
        assert WITH_ZONE.fullmatch(line["time"])
        assert {"level", "logger", "message"} <= line.keys()
        assert (line["front"], line["pool"]) == ("edge-1", "cart")
