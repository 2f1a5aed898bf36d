"""What is said of sites that an operator took out of service: the same words in every command and in the console. Pure.

The slot table names the sites that are out of service, and the operator's record says until when.
"""

from understudy.deploy.common.console_style import utc_time
from understudy.statesync.pool.state import PoolState


def offline_until(state: PoolState) -> dict[str, float | None]:
    """The sites that the slot table leaves out by an operator's record, and until when; None: without a time limit."""
    table = state.table.record if state.table else None
    return {
        site: state.sites[site].record.until or None for site in (table.offline if table else ()) if site in state.sites
    }


def offline_text(site: str, until: float | None, *, command: bool = True) -> str:
    """That a site is offline, and what ends it. ``until`` is wall time in seconds; None or 0: no time limit.

    Without ``command`` only the time is said, where the command stands beside it anyway.
    """
    if not command:
        return f"site {site} is offline {f'until {utc_time(until)}' if until else 'without a time limit'}"
    time = f"{utc_time(until)} or " if until else ""
    return f"site {site} is offline until {time}'understudy site online {site}'"
