"""A control server as a process of its own, for tests that kill it: settings as one JSON argument."""

import asyncio
import json
import logging
import sys

from understudy.statesync.etcd.settings import EtcdSettings
from understudy.xds.control.controller import Timing
from understudy.xds.control.server import run_control
from understudy.xds.control.settings import ControlSettings

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    raw = json.loads(sys.argv[1])
    made = {
        "pools": tuple(raw["pools"]),
        "etcd": EtcdSettings(tuple(raw["etcd"])),
        "clusters": {name: EtcdSettings(tuple(ends)) for name, ends in raw.get("clusters", {}).items()},
        "timing": Timing(**raw.get("timing", {})),
    }
    sys.exit(asyncio.run(run_control(ControlSettings(**{**raw, **made}))))
