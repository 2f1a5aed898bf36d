"""Runs a front Envoy as ``understudy envoy`` does.

``python -m tests.proxy.front.front_process LISTEN XDS DIRECTORY``.
"""

import asyncio
import logging
import sys
from pathlib import Path

from understudy.proxy.front.envoy import EnvoySettings, run_envoy

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    listen, xds, directory = sys.argv[1:]
    settings = EnvoySettings(
        node_id="front-1", pool="cart", listen=listen, xds_addresses=[xds], concurrency=1, directory=Path(directory)
    )
    sys.exit(asyncio.run(run_envoy(settings)))
