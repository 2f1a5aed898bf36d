"""Debian's Chromium, as the tests of pages and their benchmark start it."""

import shutil

CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
"""The first has the same engine without the browser around it, and takes half the CPU."""
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    # Processes are most of what a browser costs here: one for all pages, none for drawing.
    *("--renderer-process-limit=1", "--in-process-gpu", "--disable-gpu-rasterization", "--disable-extensions"),
]
