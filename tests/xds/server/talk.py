"""Both ends of one client's subscription without a stream between them: what the client says, what it is sent."""

from collections.abc import Mapping

from understudy.xds.server.responses import RequestOutcome, Response
from understudy.xds.server.snapshot import TypeSnapshot, encode
from understudy.xds.server.subscription import Subscription
from understudy.xds.server.variants import Delta, StateOfTheWorld
from understudy.xds.server.wire import Request

PLAIN = "type.googleapis.com/example.Plain"


def world(content: Mapping[str, str] | None = None, **more: str) -> TypeSnapshot:
    everything = {**(content or {}), **more}
    return TypeSnapshot({name: encode(PLAIN, name, text.encode()) for name, text in everything.items()})


class Talk:
    """A subscription, the content it is offered, and the client on its other end."""

    subscription: Subscription

    def __init__(self, subscription: Subscription, content: TypeSnapshot) -> None:
        self.subscription = subscription
        self.content = content
        self.nonces = 0
        self.nonce = ""
        self.version = ""

    def request(self, request: Request) -> RequestOutcome:
        return self.subscription.on_request(request, 0)

    def answer(self) -> Response | None:
        answer = self.subscription.next_response(self.content)
        if answer is not None:
            self.nonces += 1
            self.nonce, self.version = f"n{self.nonces}", answer.version
            self.subscription.on_sent(answer, self.content, self.nonce, 0)
        return answer

    def names(self) -> list[str] | None:
        answer = self.answer()
        return None if answer is None else [one.name for one in answer.resources]

    def change(self, **content: str) -> None:
        self.content = world(content)


class Sotw(Talk):
    def __init__(self, type_url: str, **content: str) -> None:
        super().__init__(StateOfTheWorld(type_url), world(content))

    def ask(self, *names: str, version: str = "", nonce: str | None = None, error: str | None = None) -> RequestOutcome:
        nonce = self.nonce if nonce is None else nonce
        return self.request(Request(PLAIN, names=names, version=version, nonce=nonce, error=error))


class Incremental(Talk):
    def __init__(self, **content: str) -> None:
        super().__init__(Delta(PLAIN), world(content))

    def ask(
        self, *subscribe: str, leave: tuple[str, ...] = (), held: Mapping[str, str] | None = None
    ) -> RequestOutcome:
        return self.request(Request(PLAIN, subscribe=subscribe, unsubscribe=leave, held=held or {}))

    def reply(self, nonce: str | None = None, error: str | None = None, **request: tuple[str, ...]) -> RequestOutcome:
        nonce = self.nonce if nonce is None else nonce
        return self.request(Request(PLAIN, nonce=nonce, error=error, **request))

    def both(self) -> tuple[list[str], list[str]] | None:
        answer = self.answer()
        return None if answer is None else ([one.name for one in answer.resources], list(answer.removed))
