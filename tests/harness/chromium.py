"""Debian's Chromium, as the console's tests and its benchmark start it."""

import shutil

CHROMIUM = shutil.which("chromium")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    # Processes are most of what a browser costs here: one for all pages, none for drawing.
    *("--renderer-process-limit=1", "--in-process-gpu", "--disable-gpu-rasterization", "--disable-extensions"),
]
