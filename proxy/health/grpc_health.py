"""The health check of an application that speaks gRPC: ``grpc.health.v1.Health/Check``.

The two messages have one field each, with number 1: the name of the service, and the status. Protobuf's own wrappers
of a string and of a number look the same on the wire, so no generated code is needed.
(https://github.com/grpc/grpc/blob/master/doc/health-checking.md)
"""

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

METHOD = "/grpc.health.v1.Health/Check"
_SERVING = 1
_STATUS = {0: "UNKNOWN", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_OPTIONS = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 100))
"""The check asks ten times a second, so it should not wait longer before it connects again."""


class GrpcHealth:
    """The check of one application, over one connection. Close it when done.

    Args:
        app: ``host:port``.
        service: whose health; '' for the server's as a whole.
    """

    def __init__(self, app: str, service: str) -> None:
        self._channel = grpc.aio.insecure_channel(app, options=_OPTIONS)
        self._check = self._channel.unary_unary(METHOD, None, None)
        self._request = StringValue(value=service).SerializeToString()

    async def close(self) -> None:
        """End the connection."""
        await self._channel.close(None)

    async def ask(self, patience: float) -> str:
        """What the application says, '' if it is well.

        Raises ``TimeoutError`` when it is silent for ``patience`` seconds, ``OSError`` when it cannot be reached.
        """
        try:
            answer: bytes = await self._check(self._request, timeout=patience)
        except grpc.aio.AioRpcError as error:
            match error.code():
                case grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise TimeoutError from None
                case grpc.StatusCode.UNAVAILABLE:
                    raise OSError(error.details()) from None
                case grpc.StatusCode.UNIMPLEMENTED:
                    return "has no grpc.health.v1.Health service (add it, or ask with tcp)"
                case code:
                    return f"answers {code.name}: {error.details()}"
        status = Int32Value.FromString(answer).value
        return "" if status == _SERVING else f"answers {_STATUS.get(status, status)}"
