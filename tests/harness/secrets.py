"""Files of tokens and keys as they must be: readable for their user alone."""

from pathlib import Path


def write_secret(path: Path, content: str) -> Path:
    """Write a file that only its user can read, and return its path."""
    path.touch(mode=0o600)
    path.write_text(content)
    return path
