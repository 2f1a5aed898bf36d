"""A whole pool on one machine, run as users run it: from a terminal, with Ctrl-C at the end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.harness.forkserver import forked
from tests.harness.local_pools import settled
from tests.harness.processes import bound_to
from tests.harness.waiting import free_port, until
from understudy.deploy.common.layout import read_layout, read_processes
from understudy.deploy.inspect.query import read_pool
from understudy.statesync.etcd.client import EtcdClient, EtcdError

ROOT = Path(__file__).parents[3]
PATIENCE = 120
AT_ONCE = 5
"""Seconds for a killed process to be gone; one that was only asked to end takes longer."""
UNDERSTUDY = str(Path(sys.executable).with_name("understudy"))
SHADOWS = ("deploy", "proxy", "statesync", "telemetry", "xds", "understudy", "aiohttp")


class Terminal:
    """``understudy`` commands in one directory; ``start`` leaves them running.

    Files in the directory have the names of modules, and nobody may import them. ``installed``: the commands are the
    program that pip installs, and its processes import what they need; otherwise they are forked.
    """

    def __init__(self, directory, *, installed=False):
        self.directory = directory
        self.installed = installed
        for name in SHADOWS:
            (directory / f"{name}.py").write_text("raise ImportError('imported from the current directory')\n")
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(directory)}
        self.started = []

    def command(self, arguments):
        if self.installed:
            return bound_to(os.getpid(), [UNDERSTUDY, *arguments])
        return forked([sys.executable, "-P", "-m", "understudy.deploy.cli", *arguments], forks=True)

    def start(self, *arguments):
        with (self.directory / "output").open("wb") as output:
            child = subprocess.Popen(
                self.command(arguments), cwd=self.directory, env=self.environment, stdout=output, stderr=output
            )
        self.started.append(child)
        return child

    def piped(self, *arguments):
        """A command whose errors the caller reads while it runs."""
        child = subprocess.Popen(
            self.command(arguments), cwd=self.directory, env=self.environment, stderr=subprocess.PIPE, text=True
        )
        self.started.append(child)
        return child

    def run(self, *arguments):
        return subprocess.run(
            self.command(arguments),
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def processes(self):
        """Everything that runs for a pool in this directory, but what the test started itself: pid -> command line."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                home = (entry / "cwd").readlink()
            except OSError:
                continue
            own = int(entry.name) in {child.pid for child in self.started}
            if not own and (str(self.directory) in command or home.is_relative_to(self.directory)):
                found[int(entry.name)] = command
        return found

    @property
    def output(self):
        return (self.directory / "output").read_text()

    def close(self):
        for child in self.started:
            if child.poll() is None:
                child.kill()
            child.wait()
        for pid in self.processes():  # else they would drain first, and have nobody to hand over to
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
async def terminal(tmp_path, request):
    terminal = Terminal(tmp_path, installed=getattr(request, "param", "forked") == "installed")
    try:
        yield terminal
    finally:
        terminal.close()
        await until(lambda: not terminal.processes(), timeout=PATIENCE, what="nothing stays behind")


@pytest.fixture
async def http():
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
        yield http


async def running(terminal, up):
    """Wait until a pool runs in the terminal's directory, and return its layout."""
    state = terminal.directory / ".understudy"

    def noted():
        assert up.poll() is None, terminal.output
        return read_layout(state)

    layout = await until(noted, timeout=PATIENCE, what="the pool has started")
    async with EtcdClient(layout.etcd) as etcd:
        await settled(layout, etcd)
    shown = terminal.run("status", "-o", "json")
    assert (shown.returncode, json.loads(shown.stdout)["slots"]["to_move"]) == (0, 0)
    return layout


@pytest.mark.parametrize("terminal", ["installed"], indirect=True)
async def test_several_pools_have_one_control_server_and_one_envoy(terminal, http):
    port = free_port()
    for pool, path in (("cart", "/cart"), ("desk", "/")):
        front = f"{{port: {port}, hosts: [shop.example], paths: [{path}]}}"
        (terminal.directory / f"{pool}.yaml").write_text(f"pool: {pool}\nslots: 8\nfront: {front}\n")
    up = terminal.start("up", "--members", "1", "-f", "cart.yaml", "-f", "desk.yaml")
    state = terminal.directory / ".understudy"
    await until(lambda: read_layout(state) or up.poll() is not None, timeout=PATIENCE, what="the pools have started")
    assert up.poll() is None, terminal.output

    def all_served():
        shown = terminal.run("status", "--pool", "all", "-o", "json")
        pools = json.loads(shown.stdout)["pools"]
        return shown.returncode == 0 and [(one["pool"], one["slots"]["served"]) for one in pools]

    assert await until(all_served, timeout=PATIENCE, what="all slots are served") == [("cart", 8), ("desk", 8)]
    for path in ("/cart", "/cart", "/healthz"):
        async with http.request(
            "GET" if path == "/healthz" else "POST", f"http://127.0.0.1:{port}{path}", headers={"Host": "shop.example"}
        ) as answer:
            assert answer.status < 300
    assert f"http://127.0.0.1:{port}/cart (Host: shop.example)" in terminal.output
    assert {process["name"] for process in read_processes(state)} >= {
        "control-1",
        "front-1",
        "cart-1/app",
        "desk-1/app",
    }
    up.send_signal(signal.SIGINT)
    assert up.wait(PATIENCE) == 0
    assert not terminal.processes()


async def test_a_pool_is_read_from_its_directory_keeps_sessions_over_a_restart_and_starts_again_what_is_killed(
    terminal, http
):
    listen = f"127.0.0.1:{free_port()}"
    up = terminal.start("up", "--members", "2", "--listen", listen, "--otlp-http")
    layout = await running(terminal, up)
    assert layout.front.listen == listen
    async with http.post(f"http://{layout.controls[0].otlp_http}/v1/traces", json={"resourceSpans": []}) as taken:
        assert taken.status == 200
    assert "Three things to try" in terminal.output
    async with http.post(f"http://{listen}/cart") as made:
        key = (await made.json())["session"]
    async with http.post(f"http://{listen}/cart/items", json={"sku": "tea"}, headers={"X-Session-Id": key}) as added:
        assert added.status == 200

    explained = terminal.run("explain", key, "--body", "-o", "json")
    assert json.loads(explained.stdout)["session"]["body"] == {"items": {"tea": 1}}
    assert terminal.run("sessions").stdout.count(key) == 1
    refused = terminal.run("up", "--members", "2", "--listen", f"127.0.0.1:{free_port()}")
    assert (refused.returncode, "a pool already runs in .understudy" in refused.stderr) == (2, True)

    up.send_signal(signal.SIGINT)
    await until(lambda: up.poll() is not None, timeout=PATIENCE, what="the pool has stopped")
    assert up.returncode == 0
    await until(lambda: not terminal.processes(), timeout=AT_ONCE, what="nothing runs any more")

    again = terminal.start("up", "--members", "2", "--listen", listen)
    await running(terminal, again)
    async with http.get(f"http://{listen}/cart", headers={"X-Session-Id": key}) as shown:
        assert (await shown.json())["items"] == {"tea": 1}

    await what_is_killed_by_hand_comes_back_and_status_says_why(terminal, again)


async def what_is_killed_by_hand_comes_back_and_status_says_why(terminal, up):
    state = terminal.directory / ".understudy"
    before = {process["name"]: process["pid"] for process in read_processes(state)}
    for name in ("control-1", "front-1", "cart-1/app", "cart-2/sidecar", "etcd"):
        os.kill(before[name], signal.SIGKILL)

        def back(name=name):
            process = next(process for process in read_processes(state) if process["name"] == name)
            # One that finds its address still taken ends once more.
            told = "SIGKILL" in process["reason"] or process["restarts"] > 1
            return process["state"] == "running" and process["pid"] != before[name] and told

        await until(back, timeout=PATIENCE, what=f"{name} is back")
    await running(terminal, up)
    assert "ended by SIGKILL" in terminal.run("status").stdout


async def test_the_demo_loses_nothing_and_leaves_nothing_behind(terminal):
    demo = terminal.start("demo", "--sessions", "40", "--rate", "60")
    await until(lambda: demo.poll() is not None, timeout=3 * PATIENCE, every=0.2, what="the demo has ended")
    report = json.loads((terminal.directory / "demo-report.json").read_text())
    assert demo.returncode == 0, terminal.output
    assert report["failed_requests"] == report["lost_writes"] == report["duplicated_writes"] == 0
    assert report["moved_needlessly"] == 0
    assert report["acknowledged_writes"] > 100
    assert report["killed"] == "cart-1"
    assert report["rejoin"]["slots_handed_back"] >= 85
    assert set(report["client_gap_ms"]) == {"p50", "p99", "max"}
    assert {name for name, ms in report["phases_ms"].items() if ms is not None} >= {
        "detect",
        "claim",
        "push",
        "ack",
        "first_ok",
    }
    assert "failover took" in terminal.output
    assert not list(terminal.directory.glob("understudy-demo-*"))


async def test_ctrl_c_stops_the_demo_and_everything_that_it_started(terminal):
    demo = terminal.start("demo", "--sessions", "40", "--rate", "60")
    await until(lambda: "steady load" in terminal.output, timeout=PATIENCE, what="the load has begun")
    assert terminal.processes()
    demo.send_signal(signal.SIGINT)
    await until(lambda: demo.poll() is not None, timeout=PATIENCE, what="the demo has stopped")
    assert demo.returncode == 130
    await until(lambda: not terminal.processes(), timeout=AT_ONCE, what="nothing runs any more")
    assert not list(terminal.directory.glob("understudy-demo-*"))


@pytest.mark.nightly
async def test_two_distant_sites_practise_a_move_and_a_loss_of_the_home_and_start_again_where_it_was(terminal, http):
    distant = ("up", "--members", "2", "--distant", "east,west", "--listen", f"127.0.0.1:{free_port()}")
    up = terminal.start(*distant)

    def runs(text):
        assert up.poll() is None, terminal.output
        return text in terminal.output

    await until(lambda: runs("site east: 256 of 256"), timeout=PATIENCE, what="the home serves")
    refused = terminal.run("home", "status")
    assert (refused.returncode, "UNDERSTUDY_DIR=.understudy/east" in refused.stderr) == (2, True)
    terminal.environment["UNDERSTUDY_DIR"] = ".understudy/west"
    for site, command in (("east", "home move --to west"), ("west", "home take-over")):
        layout = read_layout(terminal.directory / ".understudy" / site)

        async def shown(layout=layout, command=command):
            async with http.get(f"http://{layout.controls[0].http}/console/cart/members") as page:
                text = await page.text()
            return f"understudy {command} --pool cart" in text and "If east died now: at most" in text

        await until(shown, timeout=PATIENCE, what=f"the console of {site} shows the home")

    move, loss = [await drilled(terminal, kind) for kind in ("home-move", "home-loss")]
    assert len(move["home"]["without_home_seconds"]) == len(loss["home"]["without_home_seconds"]) == 2
    assert move["lost_writes"] == 0
    assert loss["home"]["counted_lost_writes"] <= loss["home"]["estimated_lost_writes"]
    assert loss["failed_requests"] > 0
    for site in ("east", "west"):
        terminal.environment["UNDERSTUDY_DIR"] = f".understudy/{site}"
        rows = json.loads(terminal.run("slo", "--statement", "-o", "json").stdout)["failures"]
        shown = {row["drill"]: (row["drills"], row["timed"], row["compared"]) for row in rows if row["drills"]}
        assert shown == {"home-move": (1, 1, 1), "home-loss": (1, 1, 1)}

    stopped = await until(lambda: moving_home(terminal), timeout=PATIENCE, what="a drill when no slot moves")
    stopped.send_signal(signal.SIGINT)
    told = stopped.communicate(timeout=PATIENCE)[1]
    assert (stopped.returncode, "moving the home from west to east" in told) == (130, True), told
    assert "at home on east" in terminal.run("home", "status").stdout

    await until(
        lambda: terminal.run("home", "move", "--to", "west").returncode == 0,
        timeout=PATIENCE,
        what="the home is at west",
    )
    up.send_signal(signal.SIGINT)
    assert up.wait(PATIENCE) == 0
    assert not terminal.processes()
    del terminal.environment["UNDERSTUDY_DIR"]
    up = terminal.start(*distant)
    await until(lambda: runs("site west: 256 of 256"), timeout=PATIENCE, what="the home serves again")
    assert "pool cart is at home on west" in terminal.output


def moving_home(terminal):
    """A drill whose home is fenced by now; None if it was refused because slots are moving."""
    drill, told = terminal.piped("drill", "home-move", "--load", "30", "--for", "60s"), []
    for line in drill.stderr:
        told.append(line)
        if "is fenced" in line:
            return drill
    drill.communicate(timeout=PATIENCE)
    assert "slots are moving" in "".join(told), told
    return None


def serving(terminal, site):
    """How many slots are active on a site; 0 if the command could not tell."""
    done = terminal.run("site", "status", "-o", "json")
    rows = json.loads(done.stdout)["sites"] if done.returncode == 0 else []
    return sum(row["active"] for row in rows if row["site"] == site)


@pytest.mark.nightly
async def test_the_larger_of_two_sites_is_lost_and_the_other_one_takes_over_until_it_is_back(terminal):
    (terminal.directory / "cart.yaml").write_text(
        "pool: cart\nslots: 16\ncopies: 2\nreplication: {spread: site}\n"
        "sites: {east: {weight: 50}, west: {weight: 50}}\nsite_switch: {freeze: 1s}\n"
    )
    sites = ("--sites", "east,west", "--etcds", "3", "--controls", "2", "--no-witness")
    up = terminal.start("up", "-f", "cart.yaml", "--members", "4", *sites, "--listen", f"127.0.0.1:{free_port()}")
    await until(lambda: "16 of 16 slots served" in terminal.output, timeout=PATIENCE, what="both sites serve")
    layout = read_layout(terminal.directory / ".understudy")
    await until(lambda: taking_over(terminal, "waiting 1 s"), timeout=PATIENCE, what="a drill that is interrupted")
    async with EtcdClient(layout.etcd) as etcd:
        assert (await take_over_of(etcd)) is None
        await until(lambda: serving(terminal, "east"), timeout=PATIENCE, what="the site has its slots again")

        def outcome():
            done = terminal.run("drill", "site-take-over", "--load", "30", "--for", "1s", "-o", "json")
            return None if "nothing was changed" in done.stderr else done

        done = await until(outcome, timeout=PATIENCE, what="a drill when nothing moves")
        assert done.returncode == 0, done.stdout + done.stderr
        (result,) = json.loads(done.stdout)["drills"]
        figures = result["take_over"]
        assert (result["lost_writes"], result["second_writers"], figures["accepted_writes"]) == (0, 0, 0)
        assert figures["estimated"]["slots_from_memory"] > 0
        assert figures["estimated"]["slots_from_etcd"] == figures["estimated"]["lossy_slots"] == 0
        assert result["failed_requests"] > 0
        first = await take_over_of(etcd)
        assert (first.generation, first.site, len(first.removed)) == (1, "west", 2)

        await until(
            lambda: taking_over(terminal, "etcd-1 joins"), timeout=PATIENCE, what="one that is interrupted late"
        )
        assert (await take_over_of(etcd)).generation == 2
        assert [status.errors for status in await etcd.status()] == [(), (), ()]
    rows = json.loads(terminal.run("slo", "--statement", "-o", "json").stdout)["failures"]
    assert [row["drills"] for row in rows if row["drill"] == "site-take-over"] == [1]
    up.send_signal(signal.SIGINT)
    assert up.wait(PATIENCE) == 0
    assert not terminal.processes()


async def take_over_of(etcd):
    """The record of the last take-over; None if there was none. Waits until etcd has a leader again."""
    found = []

    async def answers():
        with contextlib.suppress(EtcdError):
            found.append((await read_pool(etcd, "cart"))[0])
        return found

    await until(answers, timeout=PATIENCE, what="etcd answers")
    return found[0].take_over.record if found[0].take_over else None


def taking_over(terminal, text):
    """Whether a drill was interrupted as soon as it said ``text``; not if it was refused."""
    drill = terminal.piped("drill", "site-take-over", "--load", "20", "--for", "1s")
    for line in drill.stderr:
        if text in line:
            drill.send_signal(signal.SIGINT)
    return drill.wait(PATIENCE) == 130


async def drilled(terminal, kind):
    """The outcome of a drill, which met its objectives and left the home at east."""

    def outcome():
        done = terminal.run("drill", kind, "--load", "30", "--for", "1s", "-o", "json")
        return None if "nothing was changed" in done.stderr else done

    done = await until(outcome, timeout=PATIENCE, what="a drill when no slot moves")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "at home on east" in terminal.run("home", "status").stdout
    return json.loads(done.stdout)["drills"][0]
