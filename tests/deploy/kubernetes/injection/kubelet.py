"""What a kubelet does with an injected pod, as far as processes on one machine can show it.

Fills in the Downward API and ``$(VARIABLE)`` by Kubernetes' rules, starts the sidecar's container as a process with its
own command and environment, asks its probes, and ends the pod: hooks of all containers at once, then SIGTERM.
"""

import asyncio
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.deploy.kubernetes.injection.harness import named, sidecars
from tests.harness.forkserver import forked
from tests.harness.places import ROOT
from tests.harness.sidecars import application_command
from tests.harness.waiting import until

Body = dict[str, Any]


def field_of(pod: Body, path: str, ip: str) -> str:
    """A field of the Downward API; labels that are not there are empty."""
    label = re.fullmatch(r"metadata\.labels\['(.+)'\]", path)
    if label:
        return str(pod["metadata"]["labels"].get(label[1], ""))
    fields = {
        "metadata.name": pod["metadata"]["name"],
        "metadata.namespace": pod["metadata"]["namespace"],
        "metadata.uid": pod["metadata"]["uid"],
        "status.podIP": ip,
        "spec.nodeName": pod["spec"]["nodeName"],
    }
    return str(fields[path])


def environment_of(container: Body, pod: Body, ip: str) -> dict[str, str]:
    """A container's environment; a variable may use those before it."""
    found: dict[str, str] = {}
    for variable in container["env"]:
        if "valueFrom" in variable:
            found[variable["name"]] = field_of(pod, variable["valueFrom"]["fieldRef"]["fieldPath"], ip)
        else:
            found[variable["name"]] = expanded(variable["value"], found)
    return found


def expanded(text: str, environment: dict[str, str]) -> str:
    """``$(NAME)`` filled in; what is not known stays as it is."""
    return re.sub(r"\$\(([A-Za-z0-9_]+)\)", lambda match: environment.get(match[1], match[0]), text)


@dataclass
class RunningPod:
    """A pod's application and sidecar as processes of this machine; ``ip`` is the pod's address.

    ``application`` is the command of the application's container; without one it does nothing but say that it is well.
    """

    pod: Body
    ip: str
    log: Path
    application: Sequence[str] = ()
    processes: list[asyncio.subprocess.Process] = field(default_factory=list)

    @property
    def container(self) -> Body:
        """The sidecar's container."""
        (sidecar,) = sidecars(self.pod)
        return sidecar

    @property
    def environment(self) -> dict[str, str]:
        """The sidecar's environment."""
        return environment_of(self.container, self.pod, self.ip)

    def command(self, command: list[str]) -> list[str]:
        """A command of the image, here: ``understudy`` is this very tree."""
        program, *rest = [expanded(part, self.environment) for part in command]
        assert program == "understudy"
        return [sys.executable, "-m", "understudy.deploy.cli", *rest]

    async def start(self) -> None:
        """Start the sidecar, wait for its startup probe, start the application, wait until the pod is ready."""
        command = self.command([*self.container["command"], *self.container["args"]])
        with self.log.open("ab") as log:
            self.processes.append(
                await asyncio.create_subprocess_exec(
                    *forked(command), env={**os.environ, **self.environment}, cwd=ROOT, stderr=log
                )
            )
        await until(lambda: self.probe("startupProbe"), 60, f"{self.ip} has started (log: {self.log})")
        app = named(self.pod, "app")
        port = str(app["ports"][0]["containerPort"])
        command = [*self.application] or application_command(self.ip, port)
        told = {"HOST": self.ip, "PORT": port, **environment_of(app, self.pod, self.ip)}
        self.processes.append(
            await asyncio.create_subprocess_exec(
                *forked(command), env={**os.environ, **told}, cwd=ROOT, stderr=asyncio.subprocess.DEVNULL
            )
        )
        await until(lambda: self.probe("readinessProbe"), 60, f"{self.ip} is ready (log: {self.log})")

    async def probe(self, name: str) -> bool:
        """Ask a probe of the sidecar as the kubelet does: at the pod's address."""
        asked = self.container[name]["httpGet"]
        return await self._get(asked["port"], asked["path"])

    async def _get(self, port: int, path: str) -> bool:
        try:
            async with (
                aiohttp.ClientSession() as http,
                http.get(f"http://{self.ip}:{port}{path}") as answer,
            ):
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def hooks(self) -> dict[str, object]:
        """Run the preStop hooks of application and sidecar at once; what each of them ended with."""
        asked = named(self.pod, "app")["lifecycle"]["preStop"]["httpGet"]
        command = self.command(self.container["lifecycle"]["preStop"]["exec"]["command"])

        async def execute() -> object:
            told = {**os.environ, **self.environment}
            process = await asyncio.create_subprocess_exec(*forked(command), env=told, cwd=ROOT)
            return await process.wait()

        application, sidecar = await asyncio.gather(self._get(asked["port"], asked["path"]), execute())
        return {"application": application, "sidecar": sidecar}

    async def stop(self, *, native: bool = True) -> list[int]:
        """SIGTERM: to the application first and then to the sidecar, or (classic) to both; their exit codes."""
        sidecar, application = self.processes
        if application.returncode is None:
            application.terminate()
        if native:
            await application.wait()
        sidecar.terminate()
        return [await sidecar.wait(), await application.wait()]

    async def kill(self) -> None:
        """End whatever still runs."""
        for process in self.processes:
            if process.returncode is None:
                process.kill()
            await process.wait()
