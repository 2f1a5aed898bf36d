"""The console in a real browser, at a real pool: live, quiet, usable by keyboard alone, and inert to hostile text."""

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.deploy.console.desks import Desk, act_by_keyboard, command, open_desk, violations
from tests.harness.chromium import CHROMIUM
from tests.harness.local_pools import settled
from tests.harness.places import ROOT
from tests.harness.waiting import until
from tests.xds.ads_node import RefusingNode
from understudy.deploy.console.render import PAGES
from understudy.deploy.console.security import POLICY
from understudy.deploy.data.rebalance import PLACEMENT_KIND, PLAN_KIND
from understudy.deploy.inspect.query import read_pool
from understudy.statesync.audit.entry import Act, Actor
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import FailoverRecord, Intent, Member, MemberState

playwright = pytest.importorskip("playwright.async_api")
axe_core = pytest.importorskip("axe_playwright_python")

SHOTS = ROOT / "console-screenshots"
AXE = Path(axe_core.__file__).with_name("axe.min.js").read_text()
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
FIND_FAULTS = """async tags => {
  const found = await axe.run(document, {runOnly: tags, resultTypes: ["violations"]});
  return found.violations;
}"""
LOOKS = [("light", 1280), ("dark", 390)]
if "CONSOLE_EVERY_LOOK" in os.environ:
    LOOKS += [("light", 390), ("dark", 1280)]
HOSTILE = (
    '"><script>window.taken=1</script>',
    "<img src=x onerror=window.taken=1>",
    "</td></table><svg onload=window.taken=1>",
    "javascript:window.taken=1",
    "{{ 7 * 7 }}${7*7}",
    "cart\u202e1-drac\u2066",
)
SMALL = """() => {
  const within = one => one.tagName === "A" && one.closest("p,td,th,dd,li:not(nav li),footer"); // links in sentences
  return [...document.querySelectorAll("a,button,input:not([type=hidden]),select,summary,[role=gridcell]")]
    .filter(one => one.checkVisibility() && !one.matches(".skip") && !within(one))
    .map(one => [one.outerHTML.slice(0, 90), one.getBoundingClientRect()])
    .filter(([, box]) => box.width < 24 || box.height < 24)
    .map(([html, box]) => `${html}: ${box.width} x ${box.height}`);
}"""
CELLS = """() => [...document.querySelectorAll("#map [role=gridcell]")].map(cell => {
  const style = getComputedStyle(cell);
  return {letter: cell.textContent, ink: style.color, ground: style.backgroundColor, border: style.borderTopWidth};
})"""

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (.ci/programs)"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path_factory.mktemp("console"), playwright) as made:
        yield made


async def axe_faults(page: Any) -> list[tuple[str, list[str]]]:
    """The rules of axe that the page breaks, with the elements."""
    found = await page.evaluate(FIND_FAULTS, TAGS)
    return [(one["id"], [node["html"][:150] for node in one["nodes"]]) for one in found]


async def test_each_page_is_accessible_quiet_and_fits(desk: Desk) -> None:
    SHOTS.mkdir(exist_ok=True)
    async with desk.window(reduced_motion="reduce") as window:
        page = await window.new_page()
        for path in (*(path for path, _ in PAGES), "slots/table"):
            await desk.open(window, path, page)
            await page.evaluate(AXE)
            for scheme, width in LOOKS:
                await page.emulate_media(color_scheme=scheme)
                await page.set_viewport_size({"width": width, "height": 900})
                shot = SHOTS / f"{path.replace('/', '-') or 'overview'}-{scheme}-{width}.png"
                await page.screenshot(path=shot, full_page=True)
                assert await axe_faults(page) == [], (path, scheme, width)
                assert await page.evaluate("document.documentElement.scrollWidth") <= width, (path, width)
            assert await page.evaluate(SMALL) == [], (path, "targets of fewer than 24 px")
            await page.set_viewport_size({"width": 320, "height": 900})
            assert await page.evaluate("document.documentElement.scrollWidth") <= 320, (path, "reflow")
            assert await violations(page) == [], path
    assert desk.said == []


async def test_the_last_hour_is_a_sentence_a_chart_and_a_table(desk: Desk) -> None:
    async with desk.window() as window:
        page = await desk.open(window)
        for _ in range(30):
            await page.request.get(f"{desk.pool.layout.front_url}/healthz")

        async def counted() -> bool:
            told = await (await page.request.get(f"{desk.base}traffic.json")).json()
            return sum(filter(None, told["series"]["requests"])) >= 30

        await until(counted, 60, "the front Envoy's counts are in a step that has ended")
        await page.locator("#sum-rate", has_text="requests a second on average").wait_for()
        ink = "one => one.getContext('2d').getImageData(0, 0, one.width, one.height).data.some(byte => byte)"
        for name in ("rate", "trouble", "changes"):
            canvas = page.locator(f"[data-chart={name}] canvas")
            await canvas.wait_for()
            assert await canvas.evaluate(ink), name
        await page.locator("[data-chart=rate] .u-over").hover()
        await page.locator("[data-line=rate] b", has_text=" at ").wait_for()
        await page.locator("#hour-table summary").focus()
        await page.keyboard.press("Enter")
        rows = await page.locator("#hour-table tbody tr").all_inner_texts()
        assert len(rows) == 60
        assert any("not known" in row for row in rows), "before the pool began nothing is known, and that is no 0"
        assert await violations(page) == []
    async with desk.window(java_script_enabled=False) as window:
        page = await window.new_page()
        await page.goto(desk.base)
        assert "requests a second on average" in await page.locator("#sum-rate").inner_text()
        await page.locator("#hour-table summary").click()
        assert await page.locator("#hour-table tbody tr").first.is_visible()
    assert desk.said == []


async def test_the_overview_comes_to_know_whether_the_others_could_carry_the_load(desk: Desk) -> None:
    async with desk.window() as window:
        page = await desk.open(window)
        await page.locator(".verdict", has_text="of its CPUs").wait_for()
    assert desk.said == []


async def test_the_browser_enforces_the_policy(desk: Desk) -> None:
    async with desk.window() as window:
        page = await desk.open(window)
        answer = await page.request.get(desk.base)
        assert answer.headers["content-security-policy"] == POLICY
        refused = "() => { try { document.body.innerHTML = 'x'; return ''; } catch (error) { return error.name; } }"
        assert await page.evaluate(refused) == "TypeError", "Trusted Types"
        assert len(await violations(page)) == 1
    desk.said.clear()


async def test_the_review_has_its_style_without_inline_styles_being_allowed(desk: Desk) -> None:
    async with desk.window() as window:
        page = await window.new_page()
        answer = await page.goto(f"{desk.base}review")
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert await page.locator("#verdict").evaluate("one => getComputedStyle(one).paddingLeft") != "0px"
        assert await violations(page) == []
    assert desk.said == []


async def test_pages_can_be_read_without_scripts(desk: Desk) -> None:
    async with desk.window(java_script_enabled=False) as window:
        page = await window.new_page()
        texts = {
            "": "All 16 slots are served",
            "members": "cart-2",
            "failovers": "Failovers",
            "slots": "cart-1",
            "plans": "its standby takes over",
        }
        for path, text in texts.items():
            await page.goto(desk.base + path)
            assert text in await page.locator("body").inner_text()
            assert "As of" in await page.locator("#live-text").inner_text()


async def test_eight_tabs_are_live_and_a_drain_by_keyboard_alone_shows_in_all(desk: Desk) -> None:
    async with desk.window() as window:
        found = "members?q=cart-2"  # a page of some members is sent these alone
        tabs = [await desk.open(window, path) for path in (*["members"] * 7, found)]
        page = tabs[0]
        row = page.locator("tr[data-key='cart-2']")
        await page.locator("#pause").focus()
        for _ in range(30):
            await page.keyboard.press("Tab")
            if await row.locator("button:focus").count():
                break
        await page.keyboard.press("Enter")
        await page.locator("#act-command", has_text="understudy drain cart-2 --pool cart").wait_for()
        await page.keyboard.type("1h")
        await page.keyboard.press("Tab")
        await page.keyboard.type("new disk")
        await page.keyboard.press("Tab")
        await page.keyboard.type("anna")
        await page.locator("#act-command", has_text="--for 1h --reason 'new disk' --pool cart").wait_for()
        assert "cart-2 would hand over" in await page.locator("#act-effect").inner_text()
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        for tab in tabs:
            await tab.locator("tr[data-key='cart-2'] .out", has_text="drained").wait_for()
        assert "left" in await row.locator(".left").inner_text()

        async def on_the_opposite() -> bool:
            return await page.evaluate("document.activeElement.dataset.act") == "undrain"

        await until(on_the_opposite, 30, "the focus is on the button that undoes it")
    assert desk.said == []
    records = json.loads((await command(desk, "audit", "-o", "json"))[1])["records"]
    mine = next(row for row in records if row["what"] == "drain cart-2")
    assert (mine["who"], mine["why"]) == ("anna", "new disk")
    assert "console of control-1, for 127.0.0.1" in mine["process"]
    assert (await command(desk, "undrain", "cart-2"))[0] == 0
    assert (await command(desk, "drain", "cart-2", "--for", "1h", "--reason", "new disk", "--wait", "0"))[0] == 0
    theirs = json.loads((await command(desk, "audit", "-o", "json"))[1])["records"]
    same = [row for row in theirs if row["what"] == "drain cart-2"][-1]
    for name in ("chain", "what", "why", "undo"):
        assert mine[name] == same[name]
    assert mine["detail"][:10] == same["detail"][:10], "until when"
    assert (await command(desk, "undrain", "cart-2"))[0] == 0


async def test_a_plan_is_applied_undone_and_aborted_by_keyboard_and_audited_as_by_the_command(desk: Desk) -> None:
    state, _ = await read_pool(desk.etcd, "cart")
    mine = [slot for slot, at in state.owners.items() if at.record.active == "cart-1"][:3]
    placement = {"kind": PLACEMENT_KIND, "pool": "cart", "actives": {"cart-2": ", ".join(map(str, mine))}}
    file = desk.pool.settings.directory / "placement.json"
    file.write_text(json.dumps(placement))
    assert (await command(desk, "rebalance", "import", str(file), "--rate", "1000", "--yes"))[0] == 0
    async with desk.window() as window:
        page = await desk.open(window, "plans?by=count&over=0.01")
        await page.locator("[data-stands=done]").wait_for()
        moves = await page.locator("table:has(th:text-is('From')) tbody tr").count()
        assert moves
        exported = await (await page.request.get(f"{desk.base}plan.json?by=count&over=0.01")).json()
        assert (exported["kind"], len(exported["moves"])) == (PLAN_KIND, moves)
        told = "rebalance apply --by count --over 0.01 --rate 1000 --reason peak --pool cart"
        await act_by_keyboard(page, "rebalance apply", told, rate="1000")
        done = page.locator("[data-stands=done] .sentence", has_text=f"by count: done, {moves} of {moves} slots moved")
        await done.wait_for()

        await act_by_keyboard(page, "rebalance undo", "rebalance undo --rate 999 --reason peak --pool cart", "999")
        await page.locator("[data-stands=done] .sentence", has_text="undo of count: done").wait_for()
        words = ("apply", "--by", "count", "--over", "0.01", "--rate", "1000", "--yes", "--reason", "peak")
        assert (await command(desk, "rebalance", *words))[0] == 0

        await act_by_keyboard(page, "rebalance undo", "rebalance undo --rate 0.01 --reason peak --pool cart", "0.01")
        await page.locator("[data-stands=running]").wait_for()
        await act_by_keyboard(page, "rebalance abort", "rebalance abort --reason peak --pool cart")
        await page.locator("[data-stands=aborted]", has_text="aborted by anna").wait_for()
        assert await page.locator("button[data-act='rebalance undo']").is_visible()
    assert desk.said == []
    records = json.loads((await command(desk, "audit", "-o", "json"))[1])["records"]
    first, last = [row for row in records if row["what"] == "rebalance apply"]
    assert (first["who"], first["what"]) == ("anna", last["what"])
    for name in ("chain", "why", "undo"):
        assert first[name] == last[name]
    assert first["detail"].split()[2:4] == last["detail"].split()[2:4], "by what"
    assert {"rebalance undo", "rebalance abort"} <= {row["what"] for row in records if row["who"] == "anna"}


@pytest.mark.nightly
async def test_a_drill_starts_at_the_page_and_says_how_it_ended(desk: Desk) -> None:
    await settled(desk.pool.layout, desk.etcd)
    async with desk.window() as window:
        page = await desk.open(window, "plans")
        await page.locator("#drill-member").fill("cart-3")
        await act_by_keyboard(page, "drill drain", "understudy drill drain --member cart-3 --reason peak --pool cart")
        await page.locator(
            "#drill-headline", has_text="A drill is running: drain of cart-3, started by anna"
        ).wait_for()
        await page.locator("button[data-act='drill drain']").click()
        await page.locator("#act-fault", has_text="a drill of this pool is running").wait_for()
        await page.keyboard.press("Escape")
        for _ in range(5):
            await page.request.get(f"{desk.pool.layout.front_url}/healthz")
        await page.locator("#drill-headline", has_text="has ended").wait_for()
        assert "No objective was missed" in await page.locator("#drill-now").inner_text()
        assert "requests failed" in await page.locator("#drill-now").inner_text()
        await desk.open(window, "plans", page)
        await page.locator("table", has_text="drain cart-3").wait_for()
        again = "understudy drill drain --member cart-3 --for 5s --pool cart"
        assert again in await page.locator("table:has-text('Moved needlessly')").inner_text()
    assert desk.said == []
    records = json.loads((await command(desk, "audit", "-o", "json"))[1])["records"]
    mine = [row for row in records if row["why"] == "drill: peak"]
    assert [(row["who"], row["what"]) for row in mine] == [("anna", "drain cart-3"), ("anna", "undrain cart-3")]
    assert all("console of control-1" in row["process"] for row in mine)


@pytest.mark.nightly
async def test_a_control_server_that_stops_undoes_the_drain_of_its_drill(desk: Desk) -> None:
    await settled(desk.pool.layout, desk.etcd)
    async with desk.window() as window:
        page = await desk.open(window, "plans")
        wish = {"act": "drill drain", "target": "cart-3", "duration": "9m", "reason": "stop", "who": "anna"}
        headers = {"X-Understudy-Console": "act", "Origin": desk.base.removesuffix("/console/cart/")}
        started = await page.request.post(f"{desk.base}act", data=json.dumps(wish), headers=headers)
        assert started.ok, await started.text()

        async def drained() -> bool:
            return "cart-3" in (await read_pool(desk.etcd, "cart"))[0].intents

        await until(drained, 30, "the drill has drained its member")
        await desk.pool.processes.terminate("control-1")
        assert not await drained()
        await desk.pool.processes.start_again("control-1")
    desk.said.clear()
    records = json.loads((await command(desk, "audit", "-o", "json"))[1])["records"]
    mine = [(row["who"], row["what"]) for row in records if row["why"] == "drill: stop"]
    assert mine == [("anna", "drain cart-3"), ("anna", "undrain cart-3")]


async def test_a_paused_page_stands_still_says_since_when_and_catches_up(desk: Desk) -> None:
    intent = PoolKeys("cart").site_intent("west")
    async with desk.window() as window:
        page, other = await desk.open(window, "members"), await desk.open(window, "members")
        west = "tr[data-key='west'] .state"
        await page.locator("#pause").focus()
        await page.keyboard.press("Enter")
        await page.locator("#live[data-mode=paused]").wait_for()
        await desk.etcd.put(intent, Intent(site="west", since=1.0).encode())
        await other.locator(west, has_text="OFFLINE").wait_for()
        assert await page.locator(west).inner_text() == "IN SERVICE"
        assert re.match(r"Paused since 20\d\d-\S+ \S+ UTC \(", await page.locator("#live-text").inner_text())
        assert await page.locator("#pause").inner_text() == "Go on"
        await page.keyboard.press("Enter")
        await page.locator(west, has_text="OFFLINE").wait_for()
        await page.locator("#live[data-mode=live]").wait_for()
        await desk.etcd.delete(intent)
        await page.locator(west, has_text="IN SERVICE").wait_for()
    assert desk.said == []


SAYINGS = """async () => {
  const { announce } = await import("/console/_static/live.js");
  const { now } = Date, heard = [];
  for (const [second, trace, served] of [[100, "a", 2], [101, "b", 2], [102, "c", 1], [104.9, "c", 1], [105, "c", 2]]) {
    Date.now = () => 1000 * second;
    announce({ overview: { slots: { total: 2, served }, last: { trace, kind: "takeover", who: trace } } }, false);
    heard.push([document.getElementById("say").textContent, document.getElementById("alarm").textContent]);
  }
  Date.now = now;
  return heard;
}"""


async def test_a_screen_reader_hears_of_failovers_every_five_seconds_at_most_and_of_lost_slots_at_once(
    desk: Desk,
) -> None:
    await settled(desk.pool.layout, desk.etcd)  # else a handover of a test before this one is said
    async with desk.window() as window:
        page = await desk.open(window)
        await page.locator("#live[data-mode=live]").wait_for()
        await page.locator("#pause").click()  # nothing real is said meanwhile
        assert await page.locator("#say").get_attribute("role") == "status"
        assert await page.locator("#alarm").get_attribute("role") == "alert"
        alarm = "1 slots have no living owner"
        assert await page.evaluate(SAYINGS) == [
            ["takeover: a", ""],
            ["takeover: a", ""],
            ["takeover: a", alarm],
            ["takeover: a", alarm],
            ["takeover: c", ""],
        ]


async def test_with_forced_colours_the_map_still_tells_members_apart(desk: Desk) -> None:
    await settled(desk.pool.layout, desk.etcd)
    async with desk.window() as window:
        page = await desk.open(window, "slots")
        await page.emulate_media(forced_colors="active")
        cells = await page.evaluate(CELLS)
        assert {cell["letter"] for cell in cells} == {"A", "B", "C"}
        assert all(cell["border"] == "1px" for cell in cells)
        assert all(cell["ink"] != cell["ground"] for cell in cells)
        assert len({cell["ground"] for cell in cells}) == 1, "the colours are the user's, so letters tell"
    assert desk.said == []


async def test_a_site_has_bars_that_say_what_the_numbers_say(desk: Desk) -> None:
    async with desk.window() as window:
        page = await desk.open(window, "members")
        row = page.locator("tr[data-key='east']")
        told = {one: await row.locator(f"[data-f={one}]").first.inner_text() for one in ("well", "members", "copies")}
        meters = await row.locator("meter").evaluate_all("all => all.map(one => [one.value, one.max])")
        assert meters[0] == [int(told["well"]), int(told["members"])]
        assert meters[2] == [int(told["copies"]), 16]
        assert not await row.locator("meter").nth(3).is_visible(), "the spec has no sites, so there is no grade"
    assert desk.said == []


@pytest.mark.nightly
async def test_the_overview_and_status_say_how_many_sessions_each_version_still_has(desk: Desk) -> None:
    await settled(desk.pool.layout, desk.etcd)
    v1, v2 = (f"http://{desk.pool.layout.members[at].session_api}/v1/sessions/" for at in (0, 1))
    async with desk.window() as window:
        page = await desk.open(window)
        for number in range(12):  # their slots belong to members of both versions
            assert (await page.request.put(f"{v1}versions-{number}", data="x")).status == 201

        async def told(old: str, new: str) -> None:
            for version, count in (("v1", old), ("v2", new)):
                cell = page.locator(f"tr[data-key='{version}'] [data-f=told]")
                await playwright.expect(cell).to_have_text(count, timeout=60_000)

        await told("12", "0")
        for number in range(5):
            assert (await page.request.put(f"{v2}versions-{number}", data="y")).status == 200
        assert (await page.request.delete(f"{v1}versions-11")).status == 204
        await told("6", "5")
        views = json.loads((await command(desk, "status", "-o", "json"))[1])["versions"]
        assert [(row["version"], row["sessions"], row["silent"]) for row in views] == [("v1", 6, []), ("v2", 5, [])]
        for number in range(11):
            await page.request.delete(f"{v2}versions-{number}")
    assert desk.said == []


async def test_a_refused_act_says_why(desk: Desk) -> None:
    async with desk.window() as window:
        page = await desk.open(window, "members")
        west = page.locator("tr[data-key='west'] [data-f='state']")
        serves = await west.inner_text()
        await desk.etcd.put(PoolKeys("cart").site_intent("west"), Intent(site="west", since=1.0).encode())
        await page.locator("tr[data-key='east'] button[data-act='site offline']").click()
        await page.locator("#act-fault", has_text="east is the last site that can serve").wait_for()
        do = page.locator("#act-do")
        assert await do.get_attribute("aria-disabled") == "true"
        assert await do.get_attribute("aria-describedby") == "act-fault"
        await page.locator("#act-who").fill("somebody")
        await do.dispatch_event("click")
        await page.evaluate(AXE)
        assert await axe_faults(page) == [], "the open dialog"
        await desk.etcd.delete(PoolKeys("cart").site_intent("west"))
        assert await desk.etcd.get(PoolKeys("cart").site_intent("east")) is None
        await page.locator("dialog#act button", has_text="Cancel").click()
        await west.filter(has_text=serves).wait_for()
        await page.locator("tr[data-key='east'] button[data-act='site offline']").click()
        await page.locator("#act-effect li").first.wait_for()
        assert await do.get_attribute("aria-disabled") == "false", "west is back"
    assert desk.said == []


@contextlib.asynccontextmanager
async def hostile_records(desk: Desk) -> AsyncIterator[None]:
    """Records of failovers, sites, members and the audit log, and Envoys, with hostile text wherever a text can be."""
    keys = PoolKeys("cart")
    written: list[str] = []
    for number, text in enumerate(HOSTILE):
        trace = f"{number + 1:032x}"
        failover = FailoverRecord(trace, text, text, text, False, (0,), (1,), 1_800_000_000.0)
        texts = dict.fromkeys(("site", "reason", "version", "node", "clock", "app_version", "zone"), text)
        member = Member(f"late-{number}", "boot", text, text, MemberState.DOWN, **texts)
        site = keys.site_intent(text.replace("/", "|"))
        records = {
            keys.failover(trace, f"m{number}", "x"): failover.encode(),
            keys.member(member.member): member.encode(),
        }
        for key, value in records.items():
            await desk.etcd.put(key, value)
        log = OperatorLog(desk.etcd, keys, Actor(text, text, text, text), text)
        await log.put(Act(text, text, "", text), site, Intent(site=text, since=1.0).encode())
        written += [*records, site]
    nodes = [RefusingNode(desk.pool.layout.controls[0].grpc, "cart", name=text) for text in HOSTILE]
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(node.run()) for node in nodes]
        await until(lambda: all(node.seen for node in nodes), 40, "the Envoys refuse what they get")
        yield
        for task in running:
            task.cancel()
    for key in written:
        await desk.etcd.delete(key)


async def test_hostile_text_stays_text_on_every_page(desk: Desk) -> None:
    told_on = {"members", "audit", "envoys", "failovers"}
    async with desk.window() as window:
        page = await window.new_page()
        async with hostile_records(desk):
            for path in ("", "slots", *sorted(told_on), "plans", "objectives", f"failovers/{1:032x}", "explain"):
                await desk.open(window, path, page)
                if path in told_on:
                    await page.locator("main", has_text=HOSTILE[1]).wait_for()
                    await page.evaluate(AXE)
                    assert await axe_faults(page) == [], path
                assert await page.evaluate("window.taken ?? 0") == 0
                assert await page.locator("img, main svg:not(.bar, .line), main script").count() == 0
                assert await violations(page) == []
                assert "\u202e" not in await page.locator("body").inner_text()
                for text in HOSTILE if path == "explain" else ():
                    await page.locator("input[name=key]").fill(text)
                    await page.keyboard.press("Enter")
                    await page.locator("main .card").wait_for()
                    assert await page.evaluate("window.taken ?? 0") == 0
                    assert await page.locator("main img, main script").count() == 0
            await desk.open(window, "failovers", page)
            assert HOSTILE[0] in await page.locator("tbody").inner_text()
        await page.locator("tbody", has_text="onerror").wait_for(state="detached")
    assert desk.said == []


async def test_a_killed_member_shows_on_the_map_and_its_failover_is_the_trace(desk: Desk) -> None:
    await settled(desk.pool.layout, desk.etcd)
    async with desk.window() as window:
        tab = await desk.open(window, "slots")
        letters = "[...document.querySelectorAll('[role=gridcell]')].map(cell => cell.textContent)"
        assert set(await tab.evaluate(letters)) == {"A", "B", "C"}
        await tab.locator("#s0").focus()
        await tab.locator("[data-d=sessions]", has_text=re.compile(r"^\d+$")).wait_for()
        failovers = await desk.open(window, "failovers")
        known = await failovers.locator("tbody tr").count()
        victims = [one.name for one in desk.pool.processes.all if one.name.partition("/")[0] == "cart-1"]
        desk.pool.processes.kill(*victims)

        await tab.locator("[role=gridcell]", has_text="A").first.wait_for(state="detached")
        assert set(await tab.evaluate(letters)) == {"B", "C"}
        await failovers.locator("tbody tr").nth(known).wait_for()
        detail = failovers.locator("tbody tr a").first
        trace = (await detail.get_attribute("href")).rpartition("/")[2]
        row = failovers.locator(f"tr[data-key='{trace}']")
        try:
            await row.filter(has_text="±").wait_for()
        except playwright.TimeoutError:
            raise AssertionError((await row.inner_text(), (await command(desk, "trace", trace))[1])) from None
        await detail.click()
        shown = await failovers.locator("pre").inner_text()
        told = (await command(desk, "trace", trace))[1]
        assert shown.split()[:20] == told.split()[:20], "how long it took, its error, and what moved"
        steps = await failovers.locator("tr.step").all()
        assert len(steps) >= 3
        drawn = "[...document.querySelectorAll('#replay-map [role=gridcell]')].map(cell => cell.title)"
        records = [at.record for at in (await read_pool(desk.etcd, "cart"))[0].failovers.values()]
        moved = {slot: one.to for one in records if one.trace == trace for slot in one.slots}
        assert sorted(await failovers.evaluate(drawn)) == sorted(f"slot {slot}: cart-1" for slot in moved)
        last = failovers.locator("#replay-now")
        for _ in steps:
            await failovers.locator("#replay-next").click()
        assert "has ended" in await last.inner_text()
        assert sorted(await failovers.evaluate(drawn)) == sorted(f"slot {slot}: {to}" for slot, to in moved.items())
        measured = json.loads((await command(desk, "trace", trace, "-o", "json"))[1])
        claims = {round(one["start_ms"] + one["duration_ms"], 3) for one in measured["spans"] if one["name"] == "claim"}
        told = [float(await step.locator("td").first.inner_text()) for step in steps]
        assert told[0] == 0
        assert set(told[1:-1]) <= claims, "each step is the end of a claim"
        assert told[-1] == round(measured["total_ms"], 3) > 0
        assert "cart-1" in await failovers.locator("tr.step").first.inner_text()
        overview = await desk.open(window)
        await overview.locator("main", has_text="cart-1 was lost").wait_for()  # only the leader tells of it
        for page in (failovers, overview):
            await page.evaluate(AXE)
            assert await axe_faults(page) == [], "a failover, and an overview with problems"
            assert await page.evaluate(SMALL) == []
    assert desk.said == []
    await desk.pool.processes.start_again(*victims)


async def events_of(stream: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, str, Any]]:
    """The events of the console's stream that have an id: kind, id and data."""
    fields: dict[str, str] = {}
    async for line in stream.content:
        name, _, value = line.decode().strip("\n").partition(": ")
        if name:
            fields[name] = value
        elif "id" in fields:
            yield fields["event"], fields["id"], json.loads(fields["data"])
            fields = {}
        else:
            fields = {}


async def test_explain_says_who_serves_a_session_that_a_client_has(desk: Desk) -> None:
    await settled(desk.pool.layout, desk.etcd)
    async with desk.window() as window:
        page = await desk.open(window, "explain")
        made = await page.request.post(f"{desk.pool.layout.front_url}/cart")
        key, served_by = made.headers["x-session-id"], made.headers["x-served-by"]
        for asked, read_as in (
            (key, "a key"),
            (f"sid={key}", "the cookie sid"),
            (f"X-Session-Id: {key}", "the header"),
        ):
            await page.locator("input[name=key]").fill(asked)
            await page.keyboard.press("Enter")
            shown = page.locator("main .card", has_text=re.compile(rf"Read as\s*{read_as}"))
            await shown.wait_for()
            told = await shown.inner_text()
            assert re.search(rf"Active\s+{served_by}, epoch \d+", told, re.IGNORECASE), told
            assert re.search(r"Session\s+\d+ bytes of application/json", told, re.IGNORECASE), told
        await page.locator("h2", has_text="Changes of active of this slot").wait_for()
    assert desk.said == []


async def test_acts_on_members_and_sites_are_audited_as_by_their_commands(desk: Desk) -> None:
    await settled(desk.pool.layout, desk.etcd)
    headers = {"X-Understudy-Console": "act", "Origin": desk.base.removesuffix("/console/cart/")}
    steps = [
        ("drain", "cart-2", "2h", ("--for", "2h", "--wait", "0")),
        ("undrain", "cart-2", "", ()),
        ("site offline", "east", "2h", ("--for", "2h")),
        ("site online", "east", "", ()),
    ]

    async def newest(what: str) -> dict[str, Any]:
        records = json.loads((await command(desk, "audit", "-o", "json"))[1])["records"]
        return [row for row in records if row["what"] == what][-1]

    at_the_page, by_command = [], []
    async with desk.window() as window:
        page = await desk.open(window, "members")
        for act, target, duration, _ in steps:
            wish = {"act": act, "target": target, "duration": duration, "reason": "same", "who": "anna"}
            done = await page.request.post(f"{desk.base}act", data=json.dumps(wish), headers=headers)
            assert done.ok, await done.text()
            at_the_page.append(await newest(f"{act} {target}"))
            if not duration:
                await settled(desk.pool.layout, desk.etcd)
    for act, target, duration, more in steps:
        code, said = await command(desk, *act.split(), target, *more, "--reason", "same")
        assert code == 0, said
        by_command.append(await newest(f"{act} {target}"))
        if not duration:
            await settled(desk.pool.layout, desk.etcd)
    for (act, *_), mine, theirs in zip(steps, at_the_page, by_command, strict=True):
        assert mine["who"] == "anna" != theirs["who"], act
        for name in ("chain", "what", "why", "undo"):
            assert mine[name] == theirs[name], act
        assert mine["detail"][:10] == theirs["detail"][:10], act
    assert desk.said == []


async def test_a_stream_that_is_opened_again_repeats_no_event(desk: Desk) -> None:
    intent = PoolKeys("cart").site_intent("north")
    seen: list[tuple[str, str]] = []

    async def until_site(http: aiohttp.ClientSession, *, there: bool) -> None:
        """Follow the stream from the newest event that was seen until the site is there, or is not."""
        last = {"Last-Event-ID": seen[-1][1]} if seen else {}
        events = desk.base.replace("/cart/", "/_events?pool=cart")
        async with http.get(events, headers=last) as stream:
            if there:
                await desk.etcd.put(intent, Intent(site="north", since=1.0).encode())
            async for kind, number, data in events_of(stream):
                seen.append((kind, number))
                assert number.startswith(f"{data['revision']}."), "each event is of one revision"
                if there == ("north" in data.get("sites", {})):
                    return

    async with aiohttp.ClientSession(read_bufsize=1 << 22, timeout=aiohttp.ClientTimeout(total=60)) as http:
        await until_site(http, there=False)
        await until_site(http, there=True)
        before = seen[-1][1]
        desk.pool.processes.kill("control-1")
        await desk.pool.processes.start_again("control-1")
        await until_site(http, there=True)
        assert seen[-1][0] == "frame", "of another process all is new"
        assert before.rpartition(".")[2] != seen[-1][1].rpartition(".")[2]
    await desk.etcd.delete(intent)
    assert len({number for _, number in seen}) == len(seen), seen


async def test_without_its_control_server_a_page_says_since_when_it_is_stale_and_comes_back(desk: Desk) -> None:
    async with desk.window() as window:
        page = await desk.open(window)
        desk.pool.processes.kill("control-1")
        await page.locator("#live[data-mode=stale]").wait_for()
        assert "Stale since 2" in await page.locator("#live-text").inner_text()
        assert "slots are served" in await page.locator(".verdict").inner_text(), "what was known stays"
        await desk.pool.processes.start_again("control-1")
        await page.locator("#live[data-mode=live]").wait_for()
    desk.said.clear()


async def test_without_etcd_a_page_says_for_how_long_it_has_been_silent_and_comes_back(desk: Desk) -> None:
    async with desk.window() as window:
        page = await desk.open(window)
        await desk.pool.processes.terminate("etcd")
        told = re.compile(r"Stale: etcd has been silent for \d+ s; this is the last known state")
        await page.locator("#live-text", has_text=told).wait_for()
        assert "slots are served" in await page.locator(".verdict").inner_text(), "what was known stays"
        await desk.pool.processes.start_again("etcd")
        await page.locator("#live[data-mode=live]").wait_for()
    await settled(desk.pool.layout, desk.etcd)
    desk.said.clear()
