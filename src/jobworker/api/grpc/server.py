"""The gRPC door: each RPC identifies, calls the service, and maps errors, all in one place."""

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Self, cast

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from jobworker.access.policy import Action
from jobworker.access.principal import Principal
from jobworker.api.error_map import ERROR_MAP
from jobworker.api.fault import log_fault
from jobworker.api.grpc import convert
from jobworker.api.grpc._generated import jobworker_pb2 as pb2
from jobworker.api.grpc._generated import jobworker_pb2_grpc as pb2_grpc
from jobworker.api.grpc.identity import CertificateIdentity
from jobworker.api.page import token_of
from jobworker.api.tls import ServerCertificate
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.spec import Limits
from jobworker.metrics import DoorName
from jobworker.service import OutputEnd, Service

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]
    Parse = Callable[[bytes], Any]


Context = grpc.aio.ServicerContext[Any, Any]

SERVICE_NAME: Final = pb2.DESCRIPTOR.services_by_name["JobWorker"].full_name
MAX_MESSAGE: Final = 4 * 1024 * 1024
_REQUEST_SECONDS: Final = 1.0  # how long a refused caller may take to finish asking
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.max_concurrent_streams", 1000),
    ("grpc.server_handshake_timeout_ms", 10_000),  # as over HTTPS
    ("grpc.so_reuseport", 0),  # a busy port is an error, not a second server
    # A client that is cut off is noticed: a ping after silence, and a short wait for its answer.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients look after silent streams in the same way, and must not be taken for a flood.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.max_connection_idle_ms", 15 * 60_000),
)

#: The action that each RPC is, for the table of who may do what.
RPC_ACTIONS: Final = {
    "Start": Action.JOB_START,
    "Stop": Action.JOB_STOP,
    "Status": Action.JOB_STATUS,
    "Stream": Action.JOB_OUTPUT,
    "List": Action.JOB_LIST,
    "Wait": Action.JOB_WAIT,
    "Remove": Action.JOB_REMOVE,
    "Signal": Action.JOB_SIGNAL,
    "WhoAmI": Action.WHO_AM_I,
}

_principal: ContextVar[Principal] = ContextVar("principal")


class GrpcServer:
    """A running gRPC server."""

    def __init__(self, server: grpc.aio.Server, checks: Any, port: int) -> None:
        self._server = server
        self._checks = checks
        self.port = port

    @classmethod
    async def start(
        cls,
        service: Service,
        identity: CertificateIdentity,
        defaults: Limits,
        address: str,
        certificate: ServerCertificate,
    ) -> Self:
        """Serves on `address`; OSError when its port is taken.

        TLS 1.3 only: GRPC_SSL_CIPHER_SUITES must have been set before grpc was imported.
        """
        # Half of the descriptors, so that those who only connect leave enough for the other door and for jobs.
        most = ("grpc.max_allowed_incoming_connections", resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        server = grpc.aio.server(interceptors=[_Door(service, identity)], options=(*_OPTIONS, most))
        pb2_grpc.add_JobWorkerServicer_to_server(  # type: ignore[no-untyped-call]  # generated
            _Rpcs(service, identity, defaults), server
        )
        checks = _Health(service)
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        credentials = _credentials(certificate)
        try:
            port = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: the address is taken or not this host's") from error
        await server.start()
        for name in ("", SERVICE_NAME):
            await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
        return cls(server, checks, port)

    async def stop(self, grace: float) -> None:
        """No new calls; short ones finish within `grace` seconds, long ones are ended by `HeldCalls.end_all`."""
        await self._checks.enter_graceful_shutdown()
        await self._server.stop(grace)


def _credentials(certificate: ServerCertificate) -> grpc.ServerCredentials:
    """Shows the certificate as it is at each handshake, and asks for one of the users' CAs of that moment."""
    shown = certificate.grpc

    def configuration() -> grpc.ServerCertificateConfiguration:
        key, chain, ca = shown
        return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=ca)

    def changed() -> grpc.ServerCertificateConfiguration | None:
        # Called by grpc, on a thread of its own choice, before every handshake.
        nonlocal shown
        if certificate.grpc == shown:
            return None
        shown = certificate.grpc
        return configuration()

    return grpc.dynamic_ssl_server_credentials(
        configuration(),
        changed,  # type: ignore[arg-type]  # the stubs forget that None means no change
        require_client_authentication=True,
    )


class _Rpcs(pb2_grpc.JobWorkerServicer):
    """The RPCs of jobworker.v1, each a use case of the service between two conversions."""

    def __init__(self, service: Service, identity: CertificateIdentity, defaults: Limits) -> None:
        self._service = service
        self._identity = identity
        self._defaults = defaults

    async def Start(self, request: pb2.StartRequest, context: Context) -> pb2.StartResponse:
        spec = convert.spec_from(request.spec, self._defaults)
        view, existed = await self._service.start(_principal.get(), spec, request.idempotency_key or None)
        return pb2.StartResponse(job=convert.job_message(view), existed=existed)

    async def Stop(self, request: pb2.StopRequest, context: Context) -> pb2.StopResponse:
        async with self._identity.hold(context):
            view = await self._service.stop(
                _principal.get(), request.id, grace=convert.seconds_of(request.grace), signal=request.signal or 15
            )
        return pb2.StopResponse(job=convert.job_message(view))

    async def Status(self, request: pb2.StatusRequest, context: Context) -> pb2.StatusResponse:
        view = await self._service.status(_principal.get(), request.id)
        return pb2.StatusResponse(job=convert.job_message(view))

    async def Stream(self, request: pb2.StreamRequest, context: Context) -> None:
        wanted = convert.output_request_from(request)
        async for event in self._service.output(_principal.get(), request.id, wanted):
            if isinstance(event, OutputEnd):
                await context.write(convert.end_message(event))
            else:
                await context.write(convert.chunk_message(event))

    async def List(self, request: pb2.ListRequest, context: Context) -> pb2.ListResponse:
        views, after = await self._service.list(
            _principal.get(),
            convert.filter_from(request),
            convert.cursor_from(request.page_token),
            convert.page_size_from(request),
        )
        return pb2.ListResponse(
            jobs=[convert.listed_job_message(view) for view in views],
            next_page_token="" if after is None else token_of(after),
        )

    async def Wait(self, request: pb2.WaitRequest, context: Context) -> pb2.WaitResponse:
        timeout = convert.seconds_of(request.timeout) if request.HasField("timeout") else None
        async with self._identity.hold(context):
            view = await self._service.wait(_principal.get(), request.id, timeout)
        return pb2.WaitResponse(job=convert.job_message(view))

    async def Remove(self, request: pb2.RemoveRequest, context: Context) -> pb2.RemoveResponse:
        await self._service.remove(_principal.get(), request.id, force=request.force)
        return pb2.RemoveResponse()

    async def Signal(self, request: pb2.SignalRequest, context: Context) -> pb2.SignalResponse:
        await self._service.signal(_principal.get(), request.id, request.signal)
        return pb2.SignalResponse()

    async def WhoAmI(self, request: pb2.WhoAmIRequest, context: Context) -> pb2.WhoAmIResponse:
        return convert.identity_message(await self._service.who_am_i(_principal.get()))


class _Health(health.aio.HealthServicer):  # type: ignore[misc, name-defined]  # not in the stubs
    """The usual health service, whose watches are streams of their users like all others."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self._service = service

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        with self._service.counted(_principal.get()):
            await super().Watch(request, context)


class _Door(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Every call of every service passes here: its caller is proven before its handler, errors mapped behind it."""

    def __init__(self, service: Service, identity: CertificateIdentity) -> None:
        self._service = service
        self._identity = identity

    async def intercept_service(  # type: ignore[override]  # the stubs forget that there may be no handler
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        # Requests are read behind the door, and not by grpc, which logs each that cannot be read with its stack.
        parse = cast("Parse", handler.request_deserializer)
        codec = {"response_serializer": handler.response_serializer}
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(self._guard(handler.unary_unary, parse), **codec)
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(self._guard(self._held(handler.unary_stream), parse), **codec)
        guarded = self._guard_iterator(cast("Any", handler.stream_stream), parse)
        return grpc.stream_stream_rpc_method_handler(guarded, **codec)

    def _guard(self, behaviour: Callable[..., Any], parse: "Parse") -> Callable[[bytes, Context], Awaitable[Any]]:
        async def guarded(payload: bytes, context: Context) -> Any:
            try:
                _principal.set(self._identity.identify(context))
                return await behaviour(_message(parse, payload), context)
            except JobError as error:
                failure = error
            except grpc.aio.AbortError:
                raise
            except grpc.aio.InternalError:
                raise asyncio.CancelledError from None  # nothing can be sent any more: the caller is gone
            except Exception:  # noqa: BLE001 - the RPC boundary: nothing unexpected is echoed to a caller
                failure = log_fault()
            return await self._refuse(context, failure)

        return guarded

    def _held(self, behaviour: Callable[..., Any]) -> Callable[[Any, Context], Awaitable[Any]]:
        """Every stream is held: it ends as soon as its caller may not go on."""

        async def held(request: Any, context: Context) -> Any:
            async with self._identity.hold(context):
                return await behaviour(request, context)

        return held

    def _guard_iterator(
        self, behaviour: Callable[..., AsyncIterator[Any]], parse: "Parse"
    ) -> Callable[..., AsyncIterator[Any]]:
        async def guarded(payloads: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
            requests = (_message(parse, payload) async for payload in payloads)
            try:
                principal = self._identity.identify(context)
                with self._service.counted(principal):
                    async with self._identity.hold(context):
                        async for response in behaviour(requests, context):
                            yield response
            except JobError as error:
                failure = error
            except grpc.aio.AbortError:
                raise
            except grpc.aio.InternalError:
                raise asyncio.CancelledError from None  # as above
            except Exception:  # noqa: BLE001 - the RPC boundary, as above
                failure = log_fault()
            else:
                return
            # A peer whose request is still on its way would be told of its own broken write instead.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REQUEST_SECONDS):
                    await anext(payloads, None)
            await self._refuse(context, failure)

        return guarded

    async def _refuse(self, context: Context, error: JobError) -> None:
        self._service.metrics.refused(DoorName.GRPC, error.code)
        metadata = (("jobworker-error", error.code.value),)
        await context.abort(ERROR_MAP[error.code].grpc, error.message, metadata)


def _message(parse: "Parse", payload: bytes) -> Any:
    """The request that `payload` spells; INVALID_ARGUMENT."""
    try:
        return parse(payload)
    except DecodeError:
        raise JobError(
            ErrorCode.INVALID_ARGUMENT, "the request is not a message of the kind that this call takes"
        ) from None
