"""Errors of requests: a status and one sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.responses import JSONResponse

from boxwright.deployment.service.limits import RequestError
from boxwright.deployment.service.schemas import Fault

_MOST = 1000  # characters of a reason, which may quote the request
REASONS = {
    400: "The body, or an image in it, cannot be read.",
    401: "The API key is missing or wrong.",
    408: "The body took too long to arrive.",
    413: "The body, an image or the number of images is over its limit.",
    422: "An argument is missing or cannot be.",
    500: "The service failed.",
    503: "Too much is waiting; the header Retry-After says in how many seconds to come back.",
}


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for its OpenAPI description."""
    responses: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        responses[status] = {"model": Fault, "description": REASONS[status]}
    if 503 in responses:
        responses[503]["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    if 401 in responses:
        responses[401]["headers"] = {"WWW-Authenticate": {"description": "Bearer.", "schema": {"type": "string"}}}
    return responses


def error_response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response to a refused request; characters that UTF-8 can't encode, as a lone
    surrogate, are replaced."""
    text = detail[:_MOST].encode("utf-8", "replace").decode()
    return JSONResponse({"detail": text}, status, dict(headers or {}))


def refusal(error: RequestError) -> JSONResponse:
    """The response to a request that a route refuses."""
    return error_response(error.status, str(error))


def in_words(errors: Sequence[Mapping[str, Any]]) -> str:
    """Pydantic's errors as one sentence, without the input, which may be an image."""
    return "; ".join(dict.fromkeys(map(_in_words, errors[:5])))


def _in_words(error: Mapping[str, Any]) -> str:
    place = error["loc"][1:]
    if "Expected UploadFile" in error["msg"]:
        return f"{place[0]}: send files, not text (with curl, {place[0]}=@photo.jpg)"
    if not place and error["type"] == "model_attributes_type":
        return "body: send a JSON object with the header Content-Type: application/json"
    return f"{'.'.join(map(str, place)) or 'body'}: {error['msg']}"
