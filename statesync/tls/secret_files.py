"""Reads files that hold secrets, and makes directories private.

A secret file is read only if other users of the machine cannot read it. The rules are those of OpenSSH and PostgreSQL:

- A file of our own user has no permissions for group and others.
- A file of another user, such as root, may be read by its group. A service reads its files in this way, and Kubernetes
  mounts a Secret in this way for a pod with an ``fsGroup``.
- On a read-only file system permissions are not checked, because nobody can change them there. Kubernetes and container
  engines mount secrets read-only, and no other user is in the container. In a pod without an ``fsGroup`` a process that
  is not root can read a Secret only if everybody can.
"""

import errno
import os
import stat
from pathlib import Path

_OWN_MOST, _OTHERS_MOST = 0o700, 0o740


class TooOpen(PermissionError):
    """Others can read a file that should be secret. ``strerror`` says what to do."""


def read_secret(path: Path) -> bytes:
    """The content of a secret file. Raises ``OSError``: :class:`TooOpen` if others can read it."""
    with path.open("rb") as file:
        _refuse_open(path, file.fileno())
        return file.read()


def require_secret(path: Path) -> None:
    """Raise ``OSError`` unless only we can read a secret file. For libraries that read the file themselves."""
    with path.open("rb") as file:
        _refuse_open(path, file.fileno())


def fault_of(error: OSError) -> str:
    """Why a file cannot be used, in one line that names it."""
    return f"{error.filename}: {'refused' if isinstance(error, TooOpen) else 'cannot be read'}: {error.strerror}"


def too_open(mode: int, *, own: bool, read_only: bool) -> bool:
    """Whether others can read, or change, a file with these permissions.

    Args:
        mode: the permissions.
        own: whether the file belongs to the user of this process.
        read_only: whether its file system is mounted read-only.
    """
    return bool(mode & 0o777 & ~(_OWN_MOST if own else _OTHERS_MOST)) and not read_only


def _refuse_open(path: Path, file: int) -> None:
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):  # such as a pipe, <(command) in a shell: its ends are the processes'
        return
    read_only = bool(os.fstatvfs(file).f_flag & os.ST_RDONLY)
    if too_open(found.st_mode, own=found.st_uid == os.geteuid(), read_only=read_only):
        mode = stat.S_IMODE(found.st_mode)
        raise TooOpen(errno.EACCES, f"others can read it (mode {mode:04o}); run: chmod 600 {path}", str(path))


def make_private(directory: Path, mark: str) -> bool:
    """Make a directory that only we can enter. True if it existed and others could enter it until now.

    An existing directory is closed only if it is ours: if it is empty, or contains ``mark``, which we write. Any other
    directory may be used by others, such as ``/tmp``.

    Raises ``OSError``: :class:`TooOpen` if others can enter it, and it is not ours.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.stat()
    if not found.st_mode & 0o077:
        return False
    inside = [path.name for path in directory.iterdir()]
    if found.st_uid != os.geteuid() or (inside and mark not in inside):
        mode = stat.S_IMODE(found.st_mode)
        remedy = f"run chmod 700 {directory}, or name another directory"
        raise TooOpen(errno.EACCES, f"others can enter it (mode {mode:04o}); {remedy}", str(directory))
    directory.chmod(0o700)
    return True
