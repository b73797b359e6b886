"""The HTTPS door of a scripted server: real HTTP over real TLS, in front of the same scripted jobs.

It speaks the documents of the API, and leaves what jobs do to `ScriptedJobs`.
"""

import base64
import json
import ssl
import struct
import tempfile
from urllib.parse import quote

import grpc
from aiohttp import web

from jobworker.api.grpc._generated import jobworker_pb2 as pb2

TOKEN = "jw1_aaaaaaaaaaaa_scripted-secret-of-alice_abcdef"
FRAMES = "application/vnd.jobworker.frames"
_STATES = {
    pb2.JOB_STATE_PENDING: "Pending",
    pb2.JOB_STATE_RUNNING: "Running",
    pb2.JOB_STATE_COMPLETED: "Completed",
    pb2.JOB_STATE_FAILED: "Failed",
    pb2.JOB_STATE_STOPPED: "Stopped",
}
_STATE_OF = {word.upper(): number for number, word in _STATES.items()}
_STREAM_OF = {"stdout": pb2.OUTPUT_STREAM_STDOUT, "stderr": pb2.OUTPUT_STREAM_STDERR}
_LIMITS = {"cpu": "cpu", "memory": "memory_bytes", "pids": "pids", "outputBytes": "output_bytes"}
_HTTP_STATUS = {
    "invalid_argument": 400,
    "unauthenticated": 401,
    "permission_denied": 403,
    "job_not_found": 404,
    "program_not_found": 404,
    "program_not_executable": 422,
    "job_not_running": 409,
    "job_running": 409,
    "exhausted": 429,
    "unavailable": 503,
    "internal": 500,
}


class HttpsDoor:
    """Routes of the API as calls of `jobs`, which were written for gRPC."""

    def __init__(self, jobs) -> None:
        self._jobs = jobs
        self.token = TOKEN
        self.seen = []  # the headers of every request
        self.streams = 0  # that are open
        self.answers = []  # what the next requests get instead: (status, headers, body)

    async def serve(self, key_and_certificate) -> int:
        """The free port of 127.0.0.1 that it answers on from now on."""
        app = web.Application(middlewares=[self._door])
        app.add_routes(
            [
                web.get("/healthz", self._health),
                web.post("/jobs/start", self._start),
                web.post("/jobs/{id}/stop", self._stop),
                web.post("/jobs/{id}/signal", self._signal),
                web.delete("/jobs/{id}", self._remove),
                web.get("/jobs/{id}", self._status),
                web.get("/jobs/{id}/wait", self._wait),
                web.get("/jobs", self._list),
                web.get("/whoami", self._who_am_i),
                web.get("/jobs/{id}/output/stream", self._stream),
            ]
        )
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=_tls(*key_and_certificate))
        await site.start()
        (address,) = self._runner.addresses
        return address[1]

    async def close(self) -> None:
        await self._runner.cleanup()

    @web.middleware
    async def _door(self, request, handler):
        self.seen.append(request.headers)
        if self.answers:
            status, headers, body = self.answers.pop(0)
            return web.Response(status=status, headers=headers, body=body)
        if request.path != "/healthz" and request.headers.get("Authorization") != f"Bearer {self.token}":
            document = {"error": "Error: bad authentication"}
            return web.json_response(document, status=401, headers={"WWW-Authenticate": "Bearer"})
        try:
            return await handler(request)
        except _Aborted as refused:
            if refused.status is grpc.StatusCode.UNAVAILABLE and not refused.code:
                refused.code = "unavailable"
            headers = {"Jobworker-Error": refused.code, "Jobworker-Message": quote(refused.message)}
            return web.json_response(
                {"error": f"Error: {refused.message}"}, status=_HTTP_STATUS[refused.code], headers=headers
            )

    async def _health(self, _request):
        return web.json_response({"status": "ok"})

    async def _start(self, request):
        body = await request.json()
        limits = {theirs: body[ours] or 0 for ours, theirs in _LIMITS.items() if ours in body}
        message = pb2.StartRequest(
            spec=pb2.JobSpec(
                program=_bytes(body["program"]),
                args=[_bytes(word) for word in body["args"]],
                env={name: _bytes(value) for name, value in body["env"].items()},
                name=body.get("name") or "",
                labels=body["labels"],
                limits=pb2.Limits(**limits),
            ),
            idempotency_key=request.headers["Idempotency-Key"],
        )
        answer = await self._jobs.Start(message, _Call())
        headers = {"Idempotent-Replayed": "true"} if answer.existed else {}
        return web.json_response({"id": answer.job.id, "error": None}, status=201, headers=headers)

    async def _stop(self, request):
        body = await request.json() if request.can_read_body else {}
        message = pb2.StopRequest(id=request.match_info["id"])
        if "grace" in body:
            message.grace.FromNanoseconds(round(body["grace"] * 1e9))
            message.signal = body["signal"]
        answer = await self._jobs.Stop(message, _Call())
        return web.json_response({"id": answer.job.id, "error": None})

    async def _signal(self, request):
        body = await request.json()
        message = pb2.SignalRequest(id=request.match_info["id"], signal=body["signal"])
        await self._jobs.Signal(message, _Call())
        return web.json_response({"id": message.id, "error": None})

    async def _remove(self, request):
        message = pb2.RemoveRequest(id=request.match_info["id"], force=request.query.get("force") == "true")
        await self._jobs.Remove(message, _Call())
        return web.json_response({"id": message.id, "error": None})

    async def _status(self, request):
        answer = await self._jobs.Status(pb2.StatusRequest(id=request.match_info["id"]), _Call())
        return web.json_response(_job(answer.job))

    async def _wait(self, request):
        message = pb2.WaitRequest(id=request.match_info["id"])
        message.timeout.FromNanoseconds(round(float(request.query["timeout"]) * 1e9))
        return web.json_response(_job((await self._jobs.Wait(message, _Call())).job))

    async def _list(self, request):
        query = request.query
        message = pb2.ListRequest(
            states=[_STATE_OF[state.upper()] for state in query.getall("state", [])],
            labels=dict(label.split("=", 1) for label in query.getall("label", [])),
            owner=query.get("owner", ""),
            id_prefix=query.get("idPrefix", ""),
            name=query.get("name", ""),
            page_size=int(query.get("pageSize", 0)),
            page_token=query.get("pageToken", ""),
        )
        answer = await self._jobs.List(message, _Call())
        jobs = [_job(job) for job in answer.jobs]
        return web.json_response({"jobs": jobs, "nextPageToken": answer.next_page_token or None, "error": None})

    async def _who_am_i(self, _request):
        answer = await self._jobs.WhoAmI(pb2.WhoAmIRequest(), _Call())
        document = {"user": answer.user, "role": answer.role, "scopes": list(answer.scopes), "error": None}
        return web.json_response(document | {"credential": answer.credential, "expiresAt": _time(answer, "expires_at")})

    async def _stream(self, request):
        query = request.query
        message = pb2.StreamRequest(
            id=request.match_info["id"],
            offset=int(query.get("offset", 0)),
            streams=[_STREAM_OF[query["stream"]]] if "stream" in query else [],
            follow=query.get("follow", "true") == "true",
            tail_lines=int(query["tail"]) if "tail" in query else None,
        )
        if "since" in query:
            message.since.FromJsonString(query["since"])
        assert request.headers["Accept"] == FRAMES
        response = web.StreamResponse(headers={"Content-Type": FRAMES})
        if message.id not in self._jobs.jobs:
            await self._jobs.Status(pb2.StatusRequest(id=message.id), _Call())
        await response.prepare(request)
        self.streams += 1
        try:
            async for event in self._jobs.Stream(message, _Call()):
                await response.write(_frame(event))
        finally:
            self.streams -= 1
        await response.write_eof()
        return response


class _Aborted(Exception):  # noqa: N818 - what a call ended with
    def __init__(self, status, message, code) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class _Call:
    """What a gRPC handler has of its call."""

    async def abort(self, status, message, metadata=()) -> None:
        raise _Aborted(status, message, dict(metadata).get("jobworker-error", ""))


def _tls(key, certificate):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    with tempfile.NamedTemporaryFile() as file:
        file.write(key + certificate)
        file.flush()
        tls.load_cert_chain(file.name)
    return tls


def _bytes(word) -> bytes:
    return base64.b64decode(word["base64"]) if isinstance(word, dict) else word.encode()


def _word(raw):
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(raw).decode()}


def _time(message, field):
    return getattr(message, field).ToJsonString() if message.HasField(field) else None


def _outcome(outcome):
    kind = outcome.WhichOneof("why")
    match kind:
        case "exited":
            return {"kind": kind, "code": outcome.exited}
        case "signaled":
            return {"kind": kind, "signal": outcome.signaled}
        case "stopped":
            return {"kind": kind, "by": outcome.stopped.by, "signal": outcome.stopped.signal}
        case "lost":
            return {"kind": kind, "reason": outcome.lost.reason}
        case _:
            return {"kind": kind}


def _totals(output):
    return {
        "stdoutBytes": output.stdout_bytes,
        "stderrBytes": output.stderr_bytes,
        "droppedBytes": output.dropped_bytes,
        "droppedReason": output.dropped_reason or None,
    }


def _job(job):
    return {
        "id": job.id,
        "status": _STATES[job.state],
        "exitCode": job.outcome.exited if job.outcome.HasField("exited") else None,
        "error": None,
        "owner": job.owner,
        "name": job.spec.name or None,
        "labels": dict(job.spec.labels),
        "program": _word(job.spec.program),
        "args": [_word(word) for word in job.spec.args],
        "env": {name: _word(value) for name, value in job.spec.env.items()},
        "workdir": None,
        "rootfs": None,
        "network": "none",
        "limits": {
            "memory": job.spec.limits.memory_bytes or None,
            "pids": job.spec.limits.pids or None,
            "outputBytes": 1 << 30,
            "onOutputLimit": "drop",
        },
        "createdAt": _time(job, "created_at"),
        "startedAt": _time(job, "started_at"),
        "endedAt": _time(job, "ended_at"),
        "outcome": _outcome(job.outcome) if job.HasField("outcome") else None,
        "usage": {field.json_name: value for field, value in job.usage.ListFields()},
        "output": _totals(job.output),
        "effectiveLimits": dict(job.effective_limits),
        "sandbox": dict(job.sandbox),
        "isolation": job.isolation,
    }


def _frame(event) -> bytes:
    if event.HasField("chunk"):
        chunk = event.chunk
        header = struct.pack(">BxxxIQQ", chunk.stream, len(chunk.data), chunk.offset, chunk.time.ToNanoseconds())
        return header + chunk.data
    end = event.end
    payload = json.dumps(
        {
            "status": _STATES[end.state],
            "outcome": _outcome(end.outcome) if end.HasField("outcome") else None,
            "output": _totals(end.output),
            "offset": end.offset,
        }
    ).encode()
    return struct.pack(">BxxxIQQ", 3, len(payload), end.offset, 0) + payload
