"""The OpenAPI document: what the framework finds out about the routes, and what it cannot know."""

from typing import Any, Final

from fastapi import FastAPI

from jobworker.api.http.events import EVENTS_TYPE
from jobworker.api.http.output import FRAMES_TYPE, RAW_TYPE
from jobworker.metrics import OPENMETRICS_TYPE, TEXT_TYPE

_ABOUT: Final = """\
Run any Linux program on this machine as a *job*: isolated, held to its limits, its output readable live from the first
byte. Every path also exists below `/v1`. Words that are bytes (program, arguments, values of the environment) are
strings, or `{"base64": "…"}` where they are not UTF-8. An error is `{"error": "Error: …"}`; for programs its code is in
`Jobworker-Error` and the whole message, percent-encoded, in `Jobworker-Message`.
"""
_FORM: Final = "application/x-www-form-urlencoded"
_WHY: Final = {
    400: ("The request is not valid; the message says what is wrong.", "there is no field ownr"),
    401: ("No valid bearer token; the answer is always the same.", "bad authentication"),
    403: ("The caller may not do this.", "unauthorized action"),
    404: ("There is no such job, or no such program.", "job not found"),
    405: ("The path has no such method.", "this path has no such method; see /openapi.json"),
    408: ("The request did not arrive in time.", "the request did not arrive in time"),
    409: ("The job is in the wrong state for this.", "job not running"),
    413: ("The body is too large.", "the body is too large"),
    422: ("The host cannot run this: not an executable file, or a limit that cannot be enforced.", "not executable"),
    429: ("A quota is used up, or there were too many wrong tokens.", "you have as many streams open as you may"),
    431: ("The header is too large.", "the header is too large"),
    503: ("The server cannot do this now.", "the server is shutting down; jobs run on"),
}
_OAUTH_FAILURE: Final = {
    "type": "object",
    "properties": {
        "error": {
            "enum": [
                "invalid_request",
                "invalid_client",
                "invalid_grant",
                "invalid_scope",
                "unsupported_grant_type",
            ]
        },
        "error_description": {"type": "string"},
    },
    "required": ["error"],
}


def failure_response(status: int) -> dict[str, Any]:
    """What the document says about an error with this status, beside its schema."""
    description, words = _WHY[status]
    example = {"error": f"Error: {words}"}
    told: dict[str, Any] = {"description": description, "content": {"application/json": {"example": example}}}
    if status == 401:
        told["headers"] = {"WWW-Authenticate": _header("Bearer")}
    if status in {429, 503}:
        told["headers"] = {"Retry-After": _header("5")}
    return told


def document_of(api: FastAPI, open_paths: frozenset[str]) -> dict[str, Any]:
    """The whole document; `open_paths` need no token."""
    document = api.openapi()
    document["info"]["description"] = _ABOUT
    document["info"]["license"] = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
    document["servers"] = [{"url": "/"}, {"url": "/v1"}]
    document["security"] = [{"bearer": []}]
    components = document["components"]
    components["securitySchemes"] = {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "jw1_<id>_<secret>_<checksum>",
            "description": "A personal token (jobworkerd token create), or an access token from POST /oauth/token.",
        }
    }
    # The framework's own idea of what it would have answered.
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            found = operation["responses"].get("422", {}).get("content", {}).get("application/json", {})
            if "ValidationError" in str(found.get("schema", "")):
                del operation["responses"]["422"]
            if path in open_paths:
                operation["security"] = []
    return document


STREAM_ANSWER: Final = {
    "description": "The output as it is written; a connection that is cut does not mean that this was all of it.",
    "content": {
        RAW_TYPE: {"schema": {"type": "string", "format": "binary"}},
        FRAMES_TYPE: {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": (
                    "Frames of a header (>BxxxIQQ: kind 1 stdout, 2 stderr, 3 end; length; offset; time in "
                    "nanoseconds) and so many bytes; those of the one end frame, the last, are JSON."
                ),
            }
        },
    },
}
REPLAYED: Final = {
    "Idempotent-Replayed": {
        "description": "Present if this job had been started before, with the same Idempotency-Key.",
        "schema": {"const": "true"},
    }
}
EVENTS_ANSWER: Final = {
    "description": "An event each time a job that the caller may see comes into another state.",
    "content": {EVENTS_TYPE: {"schema": {"type": "string"}, "example": "event: job\nid: 1\ndata: {…}\n\n"}},
}
METRICS_ANSWER: Final = {
    "description": "Every metric; as OpenMetrics where that is accepted.",
    "content": {
        TEXT_TYPE: {"schema": {"type": "string"}, "example": 'jobworker_jobs{state="running"} 3.0\n'},
        OPENMETRICS_TYPE: {"schema": {"type": "string"}},
    },
}
TOKEN_REQUEST: Final = {
    "requestBody": {
        "required": True,
        "content": {
            _FORM: {
                "schema": {
                    "type": "object",
                    "properties": {
                        "grant_type": {"const": "client_credentials"},
                        "client_id": {"type": "string", "description": "The user's name, unless sent by Basic."},
                        "client_secret": {"type": "string", "description": "A personal token, unless sent by Basic."},
                        "scope": {
                            "type": "string",
                            "description": "The scopes wanted, of those that the personal token has.",
                        },
                    },
                    "required": ["grant_type"],
                }
            }
        },
    }
}
TOKEN_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "An access token for 15 minutes.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "access_token": {"type": "string"},
                        "token_type": {"const": "Bearer"},
                        "expires_in": {"type": "integer"},
                        "scope": {"type": "string"},
                    },
                    "required": ["access_token", "token_type", "expires_in", "scope"],
                }
            }
        },
    },
    **{
        status: {"description": description, "content": {"application/json": {"schema": _OAUTH_FAILURE}}}
        for status, description in {
            400: "The request is not valid; RFC 6749 §5.2.",
            401: "User and personal token do not belong together.",
            429: "Too many wrong attempts.",
        }.items()
    },
}
REVOKE_REQUEST: Final = {
    "requestBody": {
        "required": True,
        "content": {
            _FORM: {"schema": {"type": "object", "properties": {"token": {"type": "string"}}, "required": ["token"]}}
        },
    }
}
REVOKE_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The token is no longer valid, whatever it was.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    },
    400: TOKEN_ANSWERS[400],
    429: TOKEN_ANSWERS[429],
}


def _header(example: str) -> dict[str, Any]:
    return {"schema": {"type": "string"}, "example": example}
