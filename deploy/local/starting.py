"""Waits for the processes of a local pool to be ready, tells meanwhile what it waits for, and says why one is not."""

import asyncio
from collections.abc import Callable, Sequence

from understudy.deploy.common.errors import DeployError, NotReadyError
from understudy.deploy.local.processes import Processes, State

APP_SUFFIX = "/app"
"""How the names of the users' applications end."""
TOLD_EVERY = 3.0
"""Seconds between two lines that tell what a start waits for."""


async def all_ready(
    processes: Processes, names: Sequence[str], say: Callable[[str], None], *, app_patience: float
) -> None:
    """Wait until all the named processes are ready.

    The time of the applications, ``app_patience`` seconds, begins when all others are ready: until then those keep the
    machine busy.

    Raises:
        StartError: a process ended, could not be run, or was not ready in time.
        DeployError: an application runs and is not ready; the text says what to do.
    """
    apps = [name for name in names if name.endswith(APP_SUFFIX)]
    others = asyncio.ensure_future(processes.ready(*(name for name in names if name not in apps)))
    telling = asyncio.create_task(_tell(processes, names, say, app_patience))
    try:
        await asyncio.gather(others, processes.ready(*apps, timeout=app_patience, after=others))
    except NotReadyError as error:
        if error.name not in apps:
            raise
        more_time = "" if error.refused else "give it more time with --app-timeout, or "
        raise DeployError(f"{error}: {more_time}say with --app-health how it tells that it is well") from None
    finally:
        telling.cancel()


async def _tell(processes: Processes, names: Sequence[str], say: Callable[[str], None], patience: float) -> None:
    while True:
        await asyncio.sleep(TOLD_EVERY)
        late = [processes[name] for name in names if processes[name].state is not State.RUNNING]
        apps = [process for process in late if process.name.endswith(APP_SUFFIX)]
        shown = apps or late  # what does not start is mostly an application
        if shown:
            more = f" and {len(shown) - 1} more" if len(shown) > 1 else ""
            limit = f" (for {patience:g} s from when all else is ready)" if apps else ""
            say(f"waiting for {shown[0].name}{more}: {shown[0].unready or shown[0].state}{limit}")
