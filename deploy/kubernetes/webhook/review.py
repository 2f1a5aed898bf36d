"""One admission review: the request of an API server, and the answer. Pure.

It understands ``admission.k8s.io/v1``. It changes only new pods that ask for a sidecar, and allows everything else. A
review has no side effects and may be repeated.
"""

import base64
import json
from typing import Any

import jsonpatch

from understudy.deploy.kubernetes.base.injection_settings import InjectionSettings
from understudy.deploy.kubernetes.base.lenient_json import Body, InjectionRefused, mapping, text
from understudy.deploy.kubernetes.injection.pod import asks_for_sidecar, inject

API_VERSION = "admission.k8s.io/v1"
KIND = "AdmissionReview"
INVALID = 422
FAILED = 500
WARNING_MOST = 256
"""Maximum characters of a warning. API servers cut all warnings of a review together at 4096."""
MESSAGE_MOST = 4000


class NoReview(ValueError):
    """The body is not an admission review that this version understands; the text says why."""


def read_review(raw: bytes | bytearray) -> Body:
    """The request within a review's bytes. Raises :class:`NoReview`."""
    try:
        document = json.loads(raw, parse_constant=_refuse_constant)
    except RecursionError:
        raise NoReview("the document is nested too deeply") from None
    except ValueError as error:
        raise NoReview(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise NoReview("the body must be a JSON object")
    if (document.get("apiVersion"), document.get("kind")) != (API_VERSION, KIND):
        raise NoReview(f"only {KIND} of {API_VERSION} is supported")
    request = document.get("request")
    if not isinstance(request, dict):
        raise NoReview("the review has no request")
    uid = request.get("uid")
    if not isinstance(uid, str) or not 0 < len(uid) <= 256:
        raise NoReview("the request has no uid")
    return request


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def answer(request: Body, settings: InjectionSettings) -> tuple[Body, str]:
    """The complete answer to a request, and its outcome: ``injected``, ``ignored`` or ``denied``.

    Raises:
        RecursionError: the pod is nested too deeply.
    """
    try:
        pod = _pod_in(request, settings)
        if pod is None or not asks_for_sidecar(pod):
            return _answer(request, {"allowed": True}), "ignored"
        injected = inject(pod, settings)
    except InjectionRefused as refused:
        return denial(request, str(refused), INVALID), "denied"
    response: Body = {"allowed": True}
    operations = jsonpatch.make_patch(pod, injected.pod).patch
    if operations:
        encoded = json.dumps(operations, separators=(",", ":")).encode()
        response |= {"patchType": "JSONPatch", "patch": base64.b64encode(encoded).decode()}
    if injected.warnings:
        response["warnings"] = [f"understudy: {warning}"[:WARNING_MOST] for warning in injected.warnings]
    return _answer(request, response), "injected" if operations else "ignored"


def denial(request: Body, message: str, code: int) -> Body:
    """An answer that denies the request; ``code`` is an HTTP status."""
    reason = "Invalid" if code == INVALID else "InternalError"
    status = {
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": f"no sidecar for this pod: {message[:MESSAGE_MOST]}",
    }
    return _answer(request, {"allowed": False, "status": status})


def _answer(request: Body, response: Body) -> Body:
    return {"apiVersion": API_VERSION, "kind": KIND, "response": {"uid": request["uid"], **response}}


def _pod_in(request: Body, settings: InjectionSettings) -> Body | None:
    """The pod to be created; None if the request is about anything else. Raises :class:`InjectionRefused`."""
    kind = mapping(request, "kind", "request")
    about: tuple[Any, ...] = (kind.get("group") or "", kind.get("version"), kind.get("kind"))
    if about != ("", "v1", "Pod") or request.get("operation") != "CREATE" or request.get("subResource"):
        return None
    pod = mapping(request, "object", "request")
    metadata = mapping(pod, "metadata", "pod")
    namespace = text(request, "namespace", "request") or text(metadata, "namespace", "metadata")
    return None if namespace in settings.excluded_namespaces else pod
