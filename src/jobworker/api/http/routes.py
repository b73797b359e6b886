"""Everything that can be asked over HTTPS: one row a route, for the policy, for the framework and for the document."""

from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel

from jobworker.access.policy import Action
from jobworker.api.http import openapi
from jobworker.api.http.answers import Failure, Health, Job, JobLines, JobPage, JobRef, WhoAmI

Responses = dict[int | str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method of one path; `action` is what the policy is asked about, None: it is for everybody.

    `answer` is the body, or what the document says about all answers; `failures` are the statuses beside it.
    """

    method: str
    path: str
    endpoint: str
    action: Action | None
    about: str
    answer: type[BaseModel] | Responses
    status: int = 200
    failures: tuple[int, ...] = ()
    request: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, Any] = field(default_factory=dict)

    def responses(self) -> Responses:
        """What the document says about the answers."""
        told: Responses = {}
        if isinstance(self.answer, dict):
            told |= self.answer
        else:
            told[self.status] = {"model": self.answer, "description": "What was asked for.", "headers": self.headers}
        return told | {status: {"model": Failure, **openapi.failure_response(status)} for status in self.failures}


_ANY: Final = (400, 401, 403, 429, 431)
_ON_A_JOB: Final = (*_ANY, 404)
_WITH_BODY: Final = (408, 413)

ROUTES: Final = (
    Route(
        method="POST",
        path="/jobs/start",
        endpoint="start",
        action=Action.JOB_START,
        about="Starts a program; answers when it runs. The same Idempotency-Key starts no second job.",
        answer=JobRef,
        status=201,
        failures=(*_ON_A_JOB, *_WITH_BODY, 422, 503),
        headers=openapi.REPLAYED,
    ),
    Route(
        method="GET",
        path="/jobs",
        endpoint="list_jobs",
        action=Action.JOB_LIST,
        about="Lists jobs, newest first: the caller's own, or all for admins. Values in env are left out.",
        answer=JobPage,
        failures=_ANY,
    ),
    Route(
        method="GET",
        path="/jobs/{id}",
        endpoint="status",
        action=Action.JOB_STATUS,
        about="Returns a job: its state, what it uses, and how it ended.",
        answer=Job,
        failures=_ON_A_JOB,
    ),
    Route(
        method="DELETE",
        path="/jobs/{id}",
        endpoint="remove",
        action=Action.JOB_REMOVE,
        about="Removes a job that has ended, and its output; with force, ends a running one first.",
        answer=JobRef,
        failures=(*_ON_A_JOB, 409, 503),
    ),
    Route(
        method="POST",
        path="/jobs/{id}/stop",
        endpoint="stop",
        action=Action.JOB_STOP,
        about="Ends a job and everything in it; answers when nothing of it is alive. With grace, a signal comes first.",
        answer=JobRef,
        failures=(*_ON_A_JOB, *_WITH_BODY, 409, 503),
    ),
    Route(
        method="POST",
        path="/jobs/{id}/signal",
        endpoint="signal",
        action=Action.JOB_SIGNAL,
        about="Sends a signal to a job's main process.",
        answer=JobRef,
        failures=(*_ON_A_JOB, *_WITH_BODY, 409, 503),
    ),
    Route(
        method="GET",
        path="/jobs/{id}/wait",
        endpoint="wait",
        action=Action.JOB_WAIT,
        about="Waits until a job has ended, or until the timeout has passed.",
        answer=Job,
        failures=(*_ON_A_JOB, 503),
    ),
    Route(
        method="GET",
        path="/jobs/{id}/output",
        endpoint="lines",
        action=Action.JOB_OUTPUT,
        about="Returns what a job has written so far, as lines of text.",
        answer=JobLines,
        failures=(*_ON_A_JOB, 503),
    ),
    Route(
        method="GET",
        path="/jobs/{id}/output/stream",
        endpoint="stream",
        action=Action.JOB_OUTPUT,
        about="Streams what a job writes from any offset, byte for byte, live to its end.",
        answer={200: openapi.STREAM_ANSWER},
        failures=(*_ON_A_JOB, 503),
    ),
    Route(
        method="GET",
        path="/events",
        endpoint="events",
        action=Action.JOB_EVENTS,
        about="Streams what happens to jobs, from now on.",
        answer={200: openapi.EVENTS_ANSWER},
        failures=(*_ANY, 503),
    ),
    Route(
        method="GET",
        path="/whoami",
        endpoint="who_am_i",
        action=Action.WHO_AM_I,
        about="Returns who the caller is to the server, and what the token allows.",
        answer=WhoAmI,
        failures=(401, 403, 429, 431),
    ),
    Route(
        method="GET",
        path="/metrics",
        endpoint="metrics",
        action=Action.METRICS_READ,
        about="Returns metrics for Prometheus; for admins, with a token that has the scope metrics:read.",
        answer={200: openapi.METRICS_ANSWER},
        failures=(401, 403, 429, 431),
    ),
    Route(
        method="POST",
        path="/oauth/token",
        endpoint="grant",
        action=None,
        about="Exchanges a personal token for a short-lived one; RFC 6749 §4.4.",
        answer=openapi.TOKEN_ANSWERS,
        failures=(*_WITH_BODY, 431, 503),
        request=openapi.TOKEN_REQUEST,
    ),
    Route(
        method="POST",
        path="/oauth/revoke",
        endpoint="revoke",
        action=None,
        about="Revokes a token, for anyone who holds it; RFC 7009.",
        answer=openapi.REVOKE_ANSWERS,
        failures=(*_WITH_BODY, 431, 503),
        request=openapi.REVOKE_REQUEST,
    ),
    Route(
        method="GET",
        path="/healthz",
        endpoint="health",
        action=None,
        about="Says that the server is up.",
        answer=Health,
        failures=(431,),
    ),
)
