"""An operator's desk: a real pool, its etcd, and a real browser that looks at the console."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness.chromium import CHROMIUM, FLAGS
from tests.harness.commands import Commands
from tests.harness.local_pools import killed_at_the_end, settled
from tests.harness.sidecars import PATIENT
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.spec_reader import parse_spec

WATCH = """addEventListener('securitypolicyviolation', event => {
  (window.violations ??= []).push(event.violatedDirective + ' ' + event.blockedURI);
});"""
DEADLINE = 60_000


@dataclass
class Desk:
    """A pool, its etcd, and a browser; ``said`` is what pages complained of."""

    pool: LocalPool
    etcd: EtcdClient
    browser: Any
    said: list[str] = field(default_factory=list)

    @property
    def base(self) -> str:
        return f"http://{self.pool.layout.controls[0].http}/console/cart/"

    @contextlib.asynccontextmanager
    async def window(self, scheme: str = "light", width: int = 1280, **options: Any) -> AsyncIterator[Any]:
        """A browser window that shares nothing with others; its pages' complaints are noted."""
        size = {"width": width, "height": 900}
        context = await self.browser.new_context(viewport=size, color_scheme=scheme, **options)
        context.set_default_timeout(DEADLINE)
        if options.get("java_script_enabled", True):
            await context.add_init_script(WATCH)
        context.on("page", self._listen)
        try:
            yield context
        finally:
            await context.close()

    def _listen(self, page: Any) -> None:
        page.on("console", lambda message: message.type == "error" and self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", self._note_stranger)

    def _note_stranger(self, asked: Any) -> None:
        if not asked.url.startswith((f"http://{self.pool.layout.controls[0].http}/", "data:")):
            self.said.append(asked.url)

    async def open(self, window: Any, path: str = "", page: Any = None) -> Any:
        """A page that is live, in a new tab or in that of ``page``."""
        page = page or await window.new_page()
        await page.goto(self.base + path)
        await page.locator("#live[data-mode=live]").wait_for()
        return page


@contextlib.asynccontextmanager
async def open_desk(directory: Path, playwright: Any) -> AsyncIterator[Desk]:
    """A pool of three members in a new directory, and a browser of ``playwright``.

    The members are on two sites and run two versions of the application.
    """
    spec = parse_spec(
        f'pool: cart\nslots: 16\ncopies: 2\nbalance: {{by: sessions, mode: "off"}}\n{PATIENT}', where="test"
    )
    settings = LocalSettings(directory, spec, members=3, sites=("east", "west"), app_versions=("v1", "v2"))
    async with (
        LocalPool(settings) as pool,
        EtcdClient(pool.etcd_endpoints) as etcd,
        killed_at_the_end(pool),
        playwright.async_playwright() as started,
    ):
        await settled(pool.layout, etcd)
        browser = await started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield Desk(pool, etcd, browser)
        await browser.close()


async def command(desk: Desk, *words: str) -> tuple[int, str]:
    """The exit code and the output of a command."""
    directory = desk.pool.settings.directory
    return await Commands(directory).run(*words, UNDERSTUDY_DIR=str(directory), COLUMNS="120")


async def violations(page: Any) -> list[str]:
    return await page.evaluate("window.violations ?? []")


async def tab_to(page: Any, wanted: str) -> None:
    """Press Tab until the element has the focus."""
    for _ in range(60):
        if await page.locator(f"{wanted}:focus").count():
            return
        await page.keyboard.press("Tab")
    raise AssertionError(f"{wanted} cannot be reached by Tab")


async def act_by_keyboard(page: Any, act: str, command: str, rate: str = "") -> None:
    """Do an act with the keyboard alone, when the dialog shows the ``command`` that does the same."""
    await tab_to(page, f"button[data-act='{act}']")
    await page.keyboard.press("Enter")
    await tab_to(page, "#act-rate" if rate else "#act-reason")
    await page.keyboard.type(rate or "peak")
    if rate:
        await tab_to(page, "#act-reason")
        await page.keyboard.type("peak")
    await tab_to(page, "#act-who")
    await page.keyboard.press("Control+A")
    await page.keyboard.type("anna")
    await page.locator("#act-command", has_text=command).wait_for()
    assert await page.locator("#act-fault").inner_text() == ""
    await tab_to(page, "#act-do")
    await page.keyboard.press("Enter")
    await page.locator("#act").wait_for(state="hidden")
