"""Waits until the processes of a local pool are ready, and shows which ones are not."""

import asyncio
from collections.abc import Callable, Sequence

from understudy.deploy.common.errors import DeployError, NotReadyError
from understudy.deploy.local.processes import Processes, ProcessState

APP_SUFFIX = "/app"
"""The suffix of the names of applications."""
PROGRESS_INTERVAL = 3.0
"""Seconds between two lines about processes that are not ready."""


async def all_ready(
    processes: Processes, names: Sequence[str], say: Callable[[str], None], *, app_timeout: float
) -> None:
    """Wait until all the named processes are ready.

    The ``app_timeout`` of applications starts when all other processes are ready, because those keep the machine busy.

    Raises:
        ProcessStartError: a process ended, could not be run, or was not ready in time.
        DeployError: an application runs, but is not ready. The text says what to do.
    """
    apps = [name for name in names if name.endswith(APP_SUFFIX)]
    others = asyncio.ensure_future(processes.ready(*(name for name in names if name not in apps)))
    progress = asyncio.create_task(_show_progress(processes, names, say, app_timeout))
    try:
        await asyncio.gather(others, processes.ready(*apps, timeout=app_timeout, after=others))
    except NotReadyError as error:
        if error.name not in apps:
            raise
        more_time = "" if error.refused else "give it more time with --app-timeout, or "
        raise DeployError(f"{error}: {more_time}set its health check with --app-health") from None
    finally:
        progress.cancel()


async def _show_progress(
    processes: Processes, names: Sequence[str], say: Callable[[str], None], timeout: float
) -> None:
    while True:
        await asyncio.sleep(PROGRESS_INTERVAL)
        late = [processes[name] for name in names if processes[name].state is not ProcessState.RUNNING]
        apps = [process for process in late if process.name.endswith(APP_SUFFIX)]
        shown = apps or late  # mostly it is an application that does not start
        if shown:
            more = f" and {len(shown) - 1} more" if len(shown) > 1 else ""
            limit = f" (timeout {timeout:g} s after all other processes are ready)" if apps else ""
            say(f"waiting for {shown[0].name}{more}: {shown[0].unready or shown[0].state}{limit}")
