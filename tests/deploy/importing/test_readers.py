"""What single settings become, what is broken, and what no import may guess."""

import pytest

from understudy.deploy.importing.findings import ImportFault
from understudy.deploy.importing.haproxy_config import looks_like_haproxy
from understudy.deploy.importing.reading import import_texts

INGRESS = """
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: cart
  annotations: {{{annotations}}}
spec:
  defaultBackend: {{service: {{name: {service}, port: {{number: 80}}}}}}
"""


def of_ingress(annotations, service="cart"):
    named = ", ".join(f"nginx.ingress.kubernetes.io/{key}: '{value}'" for key, value in annotations.items())
    return import_texts([("in.yaml", INGRESS.format(annotations=named, service=service))])


def of_backend(*lines, mode="http"):
    text = "\n  ".join((f"defaults\n  mode {mode}\nbackend app", *lines, "server one 10.0.0.1:80"))
    return import_texts([("haproxy.cfg", text)])


def keys_of(imported):
    return [dict(key) for pool in imported.pools for key in pool.raw.get("session_key", [])]


def said(imported):
    return [(note.remark.kind, note.remark.setting) for note in imported.notes]


@pytest.mark.parametrize(
    ("hashed", "keys"),
    [
        ("$http_x_user_id", [{"header": "x-user-id"}]),
        ("${http_x_user}", [{"header": "x-user"}]),
        ("$cookie_sid", [{"cookie": "sid"}]),
        ("$http_understudy_ttl", []),
        ("$arg_sid", []),
        ("$remote_addr", []),
        ("$uri", []),
        ("$http_x_user$uri", []),
        ("x-user", []),
        ("$http_", []),
        ("", []),
    ],
)
def test_one_variable_of_nginx_is_a_key_and_anything_else_a_note(hashed, keys):
    imported = of_ingress({"upstream-hash-by": hashed})
    assert keys_of(imported) == keys
    assert bool(imported.notes) is not bool(keys)


def test_an_ingress_without_affinity_is_counted_and_no_more():
    imported = of_ingress({"proxy-body-size": "8m"})
    assert (imported.pools, imported.notes, imported.unrelated) == ((), (), {"Ingress": 1})


def test_attributes_that_envoys_cookie_has_too_need_no_note():
    fine = {"session-cookie-path": "/", "session-cookie-samesite": "Lax", "session-cookie-secure": "false"}
    assert said(of_ingress({"affinity": "cookie", **fine})) == [("changed", "affinity: cookie")]


def test_names_that_are_no_pool_names_become_some_and_a_note_says_so():
    imported = of_ingress({"affinity": "cookie"}, service="Cart_Service")
    assert [pool.spec.pool for pool in imported.pools] == ["cart-service"]
    assert ("check", "Cart_Service") in said(imported)


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("stick on req.cook(sid)", [{"cookie": "sid"}]),
        ("stick on cookie(sid) table other", [{"cookie": "sid"}]),
        ("stick on hdr(X-User)", [{"header": "X-User"}]),
        ("stick on hdr(X-User,1)", [{"header": "X-User"}]),
        ("stick match 'req.cook(sid)'", [{"cookie": "sid"}]),
        ("stick on req.cook(sid),word(1,.)", []),
        ("stick on urlp(sid)", []),
        ("stick on src", []),
        ("stick on hdr_ip(X-Forwarded-For)", []),
        ("stick on ssl_fc_session_id", []),
        ("stick on req.cook", []),
        ("stick on '", None),
        ("balance hdr(X-User)", [{"header": "X-User"}]),
        ("balance hdr(Host) use_domain_only", []),
        ("balance hdr()", []),
        ("balance hash hdr(X-User)", [{"header": "X-User"}]),
        ("balance url_param sid", []),
        ("balance rdp-cookie(mstshash)", []),
        ("cookie SRV insert indirect", [{"cookie": "understudy-route", "generated": True}]),
        ("cookie SRV", [{"cookie": "understudy-route", "generated": True}]),
        ("cookie sid prefix", [{"cookie": "sid"}]),
        ("cookie b@d prefix", []),
    ],
)
def test_directives_of_haproxy(line, keys):
    if keys is None:
        with pytest.raises(ImportFault, match=r"haproxy\.cfg, line 4: no closing quotation"):
            of_backend(line)
        return
    imported = of_backend(line)
    assert keys_of(imported) == keys
    assert imported.pools or imported.notes


@pytest.mark.parametrize("line", ["stick on req.cook(sid)", "cookie SRV insert", "appsession S len 9", "balance uri"])
def test_in_tcp_mode_there_are_no_cookies(line):
    imported = of_backend(line, mode="tcp")
    assert imported.pools == ()
    assert [note.remark.reason for note in imported.notes] == [
        "The section is in TCP mode, in which HAProxy and Envoy see no headers and no cookies."
    ]


def test_the_address_is_the_key_of_a_tcp_backend():
    (pool,) = of_backend("balance source", mode="tcp").pools
    assert (pool.spec.protocol, pool.spec.tcp.send_proxy_protocol) == ("tcp", "none")


def test_a_backend_without_a_mode_is_in_tcp_mode_as_haproxy_has_it():
    text = "backend app\n  {}\n  server one 10.0.0.1:80"
    (pool,) = import_texts([("haproxy.cfg", text.format("balance source"))]).pools
    assert pool.spec.protocol == "tcp"
    assert import_texts([("haproxy.cfg", text.format("cookie sid prefix"))]).pools == ()


def test_a_balance_beside_a_cookie_is_for_requests_without_one():
    imported = of_backend("balance source", "cookie sid prefix")
    assert keys_of(imported) == [{"cookie": "sid"}]
    assert ("changed", "balance source") in said(imported)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: [", "in.yaml: not YAML: .* line 1"),
        ("{{ if .Values.x }}\nkind: Pod", "in.yaml: not YAML: .* Render it first: helm template CHART"),
        ("kind: Pod\nkind: Pod", "in.yaml: line 2: key 'kind' stands here for the second time"),
        ("- 1", "in.yaml, document 1: the document: not a mapping, but \\[1\\]"),
        ("just text", "in.yaml, document 1: the document: not a mapping, but 'just text'"),
        ("{a: 1}", "in.yaml, document 1: not a Kubernetes object: it has no apiVersion or no kind"),
        (
            "{apiVersion: v1, kind: List, items: [{kind: Pod, apiVersion: v1}, 3]}",
            "in.yaml, document 1, items\\[1\\]: the document: not a mapping, but 3",
        ),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: a, labels: [b]}}",
            "in.yaml, document 1, Service a: metadata.labels: not a mapping, but \\['b'\\]",
        ),
        ('backend app\n  balance hdr("X', "in.yaml, line 2: no closing quotation"),
        ("backend\n", "in.yaml, line 1: backend has no name"),
    ],
)
def test_what_is_broken_is_named_with_its_place(text, fault):
    with pytest.raises(ImportFault, match=fault):
        import_texts([("in.yaml", text)])


def test_all_faults_of_all_files_are_named_at_once():
    broken = "{apiVersion: v1, kind: Service, metadata: {name: a, labels: 1}}"
    with pytest.raises(ImportFault) as raised:
        import_texts([("one.yaml", "a: ["), ("two.yaml", "b: ["), ("fine.yaml", broken)])
    assert [line.split(":")[0] for line in str(raised.value).split("\n")] == ["one.yaml", "two.yaml"]
    with pytest.raises(ImportFault) as raised:
        import_texts([("a.yaml", broken), ("b.yaml", broken)])
    assert len(str(raised.value).split("\n")) == 2


def test_a_policy_finds_its_route_in_another_file():
    policy = """
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: BackendTrafficPolicy
metadata: {name: p}
spec:
  targetRefs: [{kind: HTTPRoute, name: r}]
  loadBalancer: {type: ConsistentHash, consistentHash: {type: Headers, headers: [{name: x-user}]}}
"""
    route = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec: {rules: [{backendRefs: [{name: cart}]}]}
"""
    assert [p.spec.pool for p in import_texts([("p.yaml", policy), ("r.yaml", route)]).pools] == ["cart"]
    assert [p.spec.pool for p in import_texts([("p.yaml", policy)]).pools] == ["r"]


def test_of_two_cookies_that_proxies_make_one_stays_and_a_note_names_the_other():
    rule = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: cart}
spec: {host: cart, trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: route, ttl: 0s}}}}}
"""
    ingress = INGRESS.format(annotations="nginx.ingress.kubernetes.io/affinity: cookie", service="cart")
    imported = import_texts([("rule.yaml", rule), ("ingress.yaml", ingress)])
    assert keys_of(imported) == [{"cookie": "route", "generated": True}]
    assert ("lost", "cookie: understudy-route, generated: True") in said(imported)


def test_a_configuration_within_a_manifest_is_a_manifest():
    assert looks_like_haproxy("# ours\nglobal\n  maxconn 1\nbackend app\n  balance source\n")
    assert not looks_like_haproxy("apiVersion: v1\nkind: ConfigMap\ndata:\n  haproxy.cfg: |\n    backend app\n")
    assert not looks_like_haproxy('{"kind": "List", "apiVersion": "v1", "items": []}')
