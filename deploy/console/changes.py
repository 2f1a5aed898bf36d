"""What has changed between two frames. Pure."""

from typing import Any

from understudy.deploy.console.frame import Frame


def changes(before: Frame, after: Frame) -> dict[str, Any] | None:
    """The objects that differ, by kind and key; None stands for one that is gone. None if nothing differs.

    All changes of a frame are one event, so a browser never shows half of a frame.
    """
    found: dict[str, Any] = {}
    if before.overview != after.overview:
        found["overview"] = after.overview
    for kind, objects in after.objects.items():
        old = before.objects.get(kind, {})
        differ = {key: row for key, row in objects.items() if old.get(key) != row}
        gone = dict.fromkeys(key for key in old if key not in objects)
        if differ or gone:
            found[kind] = {**differ, **gone}
    return {"pool": after.pool, "revision": after.revision, **found} if found else None
