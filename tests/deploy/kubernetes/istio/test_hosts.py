"""A gateway that ends TLS for several hosts on one port: one host is routed by slots, the others stay Istio's."""

import ssl
from pathlib import Path

import aiohttp

from tests.deploy.kubernetes.istio.members import join, running_apps
from tests.deploy.kubernetes.istio.meshlike import GATEWAY, Istiod, envoy_filters, running_proxy
from tests.harness.certificates import Authority
from tests.harness.waiting import free_port, until
from tests.xds.control.control_pool import SLOTS, control_pool
from understudy.deploy.kubernetes.istio.plan import MeshPlan
from understudy.deploy.kubernetes.istio.tree import PREPARE, ROUTE
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Liveness, Mesh

HOST, OTHER = "cart.example.com", "blog.example.com"
SPEC = PoolSpec(
    pool="cart",
    slots=SLOTS,
    mesh=Mesh(host="cart-slots.cart.svc.cluster.local"),
    liveness=Liveness(missed_beats=30),
)
MEMBERS = ("cart-1", "cart-2", "cart-3")


async def test_one_host_of_a_shared_port_goes_by_slot(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    own = authority.issue("gateway", f"DNS:{HOST},DNS:{OTHER}")
    trust = ssl.create_default_context(cafile=str(own.ca))
    plan = MeshPlan(
        SPEC, "gateway", (1, 29), listener_port=free_port(), host=HOST, credential="cart-tls", xds_tls="none"
    )
    filters = [*envoy_filters(plan, PREPARE), *envoy_filters(plan, ROUTE)]
    with running_apps(MEMBERS, tmp_path / "notes") as apps:
        async with control_pool(tmp_path) as pool, aiohttp.ClientSession() as http:
            control = await pool.control()
            pods = {name: f"127.0.0.1:{app.port}" for name, app in apps.items()}
            orders = await join(pool, pods)
            await pool.apply(SPEC)
            istiod = Istiod(GATEWAY, plan.mesh, plan.proxy_port, list(pods.values()), filters, own, hosts=(HOST, OTHER))

            async def ask(host: str, key: str) -> tuple[str, bool]:
                url = f"https://{istiod.address}:{istiod.listen}/"
                sent = {"host": host, "x-session-id": key}
                async with http.get(url, headers=sent, ssl=trust, server_hostname=host) as answer:
                    assert answer.status == 200
                    return await answer.text(), "x-envoy-attempt-count" in answer.headers

            async def by_slot() -> bool:
                keys = [f"key-{number}" for number in range(60)]
                wanted = [(orders[slot_of(key, SLOTS)][0], True) for key in keys]
                return [await ask(HOST, key) for key in keys] == wanted

            async with running_proxy(istiod, tmp_path / "gateway", [control.grpc]):
                await until(by_slot, 40, f"{HOST} goes by slot")
                answers = {await ask(OTHER, "key-1") for _ in range(30)}
                assert len(answers) > 1
                assert not any(told for _, told in answers)
