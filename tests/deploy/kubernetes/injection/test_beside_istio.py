"""Two webhooks, one pod: whichever comes first, our sidecar can be asked, and the application's end waits for it."""

import itertools
from typing import Any

import pytest

from tests.deploy.kubernetes.injection.harness import CLASSIC_FORM, NEWEST, PLAIN, named, sidecars, validate
from tests.deploy.kubernetes.injection.istio_webhook import AGENT, Rules, mesh
from tests.deploy.kubernetes.injection.shapes import Body, container, pod
from understudy.deploy.kubernetes.injection.pod import inject

OURS = {"startupProbe": "/started", "readinessProbe": "/health", "livenessProbe": "/live"}
FORMS = {"native": PLAIN, "classic": CLASSIC_FORM}


def application(**more: Any) -> Body:
    return pod(containers=[container(readinessProbe={"httpGet": {"path": "/ready", "port": 8080}}, **more)])


def check(made: Body) -> None:
    """What has to hold of a pod with both sidecars, so that it starts, is asked, and ends in order."""
    (sidecar,) = sidecars(made)
    for name, path in OURS.items():
        assert sidecar[name]["httpGet"] == {"path": path, "port": 7602}, "no agent stands between kubelet and sidecar"
    app = named(made, "app")
    assert app["readinessProbe"]["httpGet"]["port"] == AGENT, "the application's own probe is Istio's"
    assert app["lifecycle"]["preStop"]["httpGet"] == {"path": "/drained?wait=15", "port": 7602}
    told = dict(itertools.pairwise(sidecar["args"]))
    assert told["--app-health"] == "/ready"
    redirection = named(made, "istio-init", "initContainers")["args"]
    assert {"7601", "7602", "7603"} <= set(redirection[redirection.index("-d") + 1].split(","))
    validate(made, "1.29", NEWEST)


@pytest.mark.parametrize("native", [True, False], ids=["native proxy", "proxy beside"])
@pytest.mark.parametrize("rules", ["all", "mindful"])
@pytest.mark.parametrize("form", FORMS)
def test_istio_first_or_ours_first_and_asked_again(form: str, rules: Rules, *, native: bool) -> None:
    settings = FORMS[form]
    istio_first = inject(mesh(application(), rules=rules, native=native), settings)
    ours_first = inject(mesh(inject(application(), settings).pod, rules=rules, native=native), settings)

    for injected in (istio_first, ours_first):
        check(injected.pod)
        assert injected.warnings == ()
        assert inject(injected.pod, settings).pod == injected.pod


@pytest.mark.parametrize("native", [True, False], ids=["native proxy", "proxy beside"])
def test_an_istio_that_minds_excluded_ports_leaves_our_probes_even_if_we_are_not_asked_again(*, native: bool) -> None:
    check(mesh(inject(application(), PLAIN).pod, rules="mindful", native=native))


def test_an_applications_own_hook_is_its_own_also_by_way_of_istios_agent() -> None:
    own = {"preStop": {"httpGet": {"path": "/bye", "port": 8080}}}
    given = mesh(application(lifecycle=own), rules="all", native=True)

    injected = inject(given, PLAIN)

    assert named(injected.pod, "app")["lifecycle"] == named(given, "app")["lifecycle"]
    assert "keeps its own preStop hook" in " ".join(injected.warnings)
