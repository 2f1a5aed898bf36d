"""A process that adds phases to a failover's trace, as a sidecar does: run by the tests with ``python -m``."""

import json
import sys

from understudy.telemetry.tracing.setup import start_telemetry


def main() -> None:
    """Arguments: instance, endpoint, traceparent, and a JSON list of [phase, start_ns, end_ns]."""
    instance, endpoint, traceparent, phases = sys.argv[1:]
    telemetry = start_telemetry("understudy-sidecar", instance, endpoint=endpoint)
    trace = telemetry.failover(traceparent)
    for name, start_ns, end_ns in json.loads(phases):
        trace.phase(name, start_ns, end_ns, {"understudy.member": instance})
    telemetry.shutdown(60)
    json.dump({"sent": telemetry.counts.sent, "dropped": telemetry.counts.dropped}, sys.stdout)


if __name__ == "__main__":
    main()
