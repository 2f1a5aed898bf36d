"""The review's page in a real browser: what it shows, that it is quiet, and that hostile text stays text."""

import asyncio
import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from html import escape, unescape
from pathlib import Path

import pytest

from tests.harness.chromium import CHROMIUM
from tests.telemetry.support import EPOCH_NS, MS, root, stored
from understudy.telemetry.otlp.spans import StoredSpan
from understudy.telemetry.slo.failovers import failovers_of, pictured
from understudy.telemetry.slo.judgement import review
from understudy.telemetry.slo.model import DAY_NS, Targets
from understudy.telemetry.slo.page import page

SHOTS = Path(__file__).parents[3] / "slo-screenshots"
HOSTILE = '"><script>document.title="taken"</script><img src=x onerror="document.title=1">'
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
)


def failover(number: int) -> list[StoredSpan]:
    """A takeover, later and slower with its number; its names are hostile."""
    trace, at, slow = f"{number + 1:032x}", number * 3_000_000, 1 + number * number
    facts = {
        "understudy.pool": "cart",
        "understudy.slots": 85,
        "understudy.from": HOSTILE,
        "understudy.cause": HOSTILE,
        **({"understudy.drill": "kill"} if number % 2 else {}),
    }
    parts = [("detect", 0, 4), ("decide", 4, 3), ("claim", 7, 6), ("catch_up", 13, 2), ("push", 7, 9), ("ack", 9, 22)]
    spans = [stored(name, at + slow * start, slow * ms, HOSTILE) for name, start, ms in parts]
    spans.append(replace(root(slow * 31, attributes=facts), start_ns=EPOCH_NS + at * MS))
    spans[-1] = replace(spans[-1], end_ns=spans[-1].start_ns + slow * 31 * MS)
    return [replace(span, trace_id=trace) for span in spans]


def written(directory: Path) -> Path:
    spans = [span for number in range(12) for span in failover(number)]
    failovers = failovers_of(spans, "cart")
    end = EPOCH_NS + 2 * DAY_NS
    now = pictured(review(failovers, Targets(), pool="cart", start_ns=EPOCH_NS, end_ns=end, slots=256), spans)
    before = review([], Targets(), pool="cart", start_ns=EPOCH_NS - 2 * DAY_NS, end_ns=EPOCH_NS, slots=256)
    path = directory / "review.html"
    path.write_text(page(now, before), encoding="utf-8")
    return path


async def browse(*arguments: str) -> tuple[str, str]:
    """Chromium's output and what it logged, console messages included."""
    with tempfile.TemporaryDirectory() as profile:
        process = await asyncio.create_subprocess_exec(
            *(str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, said = await asyncio.wait_for(process.communicate(), 60)
    return output.decode(), said.decode(errors="replace")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (.ci/programs)")
async def test_a_browser_shows_the_page_without_complaint_and_hostile_text_stays_text(tmp_path: Path) -> None:
    path = written(tmp_path)
    shown, said = await browse("--dump-dom", path.as_uri())
    assert "CONSOLE" not in said
    assert "<title>cart: missed</title>" in shown
    assert "<script" not in shown
    assert "<img" not in shown
    assert "Content-Security-Policy\" content=\"default-src 'none'; " in shown
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*"', shown) == [], "nothing is fetched"
    body = shown.split("<body>")[1]
    assert body.index('id="verdict"') < body.index('id="objectives"') < body.index('id="worst"')
    for picture in ("by-phase", "timeline", "burn-down", "waterfall-1", "waterfall-5"):
        assert f'id="{picture}"' in body
        assert f'<desc id="{picture}-d">' in body
    assert body.count('role="img"') == 8


LOOKER = """<!doctype html><style>iframe {border: 0; width: WIDTHpx; height: 9000px}</style>
<body style="margin:0"><iframe id="page" srcdoc="PAGE"></iframe><script>
document.getElementById("page").onload = event => {
  const page = event.target.contentDocument, cut = [];
  const shown = one => one.textContent.trim() && !one.closest("thead, .scroll, style, title, desc");
  for (const one of [...page.body.querySelectorAll("*")].filter(shown)) {
    const frame = one.closest("svg") || page.documentElement;
    const [at, of] = [one, frame].map(x => x.getBoundingClientRect());
    if (at.left < of.left - 1 || at.right > of.right + 1) cut.push(one.tagName + ": " + one.textContent.slice(0, 40));
  }
  const sizes = [...page.querySelectorAll("svg text")].map(one => one.getBoundingClientRect().height);
  const wide = page.documentElement.scrollWidth;
  document.body.textContent = JSON.stringify({cut, wide, smallest: Math.min(...sizes)});
}</script>"""
"""A page that shows another in a frame and then tells what sticks out of it, or out of its picture."""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (.ci/programs)")
@pytest.mark.parametrize("width", [360, 390, 1100])
async def test_nothing_sticks_out_of_the_screen_or_its_picture(tmp_path: Path, width: int) -> None:
    looker = tmp_path / "looker.html"
    shown = LOOKER.replace("WIDTH", str(width)).replace("PAGE", escape(written(tmp_path).read_text(encoding="utf-8")))
    looker.write_text(shown, encoding="utf-8")
    dumped, _ = await browse("--dump-dom", looker.as_uri())
    found = json.loads(unescape(dumped.split("<body", 1)[1].split(">", 1)[1].split("</body>")[0]))
    assert found["cut"] == []
    assert found["wide"] == width
    assert found["smallest"] > 10, "letters in pictures, in px"


@pytest.mark.skipif(
    CHROMIUM is None or shutil.which("pdftotext") is None, reason="needs chromium and poppler-utils (.ci/programs)"
)
async def test_on_paper_nothing_is_cut_off_and_little_is_wasted(tmp_path: Path) -> None:
    SHOTS.mkdir(exist_ok=True)
    paper = SHOTS / "print.pdf"
    await browse("--no-pdf-header-footer", f"--print-to-pdf={paper}", written(tmp_path).as_uri())
    command = ["pdftotext", "-layout", paper, "-"]
    text = (await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)).stdout
    assert text.count("\f") <= 5, "pages"
    for title in ("Missed: crash RTO", "second writers", "exposure", "Burn", "Worst failovers", "Budget left"):
        assert title in text
    assert text.index("Missed: crash RTO") < text.index("Objectives") < text.index("Worst failovers")
    assert re.search(r"limit 14.4 +limit 6 +limit 1\n", text), "the widest table's last column"


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (.ci/programs)")
@pytest.mark.parametrize(
    "look", [("light", "1100,2800"), ("dark", "1100,2800"), ("phone", "500,5600")], ids=lambda one: one[0]
)
async def test_a_picture_of_the_page_is_kept(tmp_path: Path, look: tuple[str, str]) -> None:
    name, size = look
    SHOTS.mkdir(exist_ok=True)
    picture = SHOTS / f"{name}.png"
    dark = ["--blink-settings=preferredColorScheme=0"] if name == "dark" else []
    await browse(*dark, f"--window-size={size}", f"--screenshot={picture}", written(tmp_path).as_uri())
    assert picture.read_bytes().startswith(b"\x89PNG")
