"""The encrypted connection that a context describes."""

import ipaddress
from typing import Final

import grpc

from jobworker.client.connection import CONNECT_SECONDS, KEEPALIVE_SECONDS, KEEPALIVE_TIMEOUT_SECONDS
from jobworker.client.context import Context, Transport

_MAX_MESSAGE: Final = 8 << 20


def open_channel(context: Context) -> grpc.aio.Channel:
    """A channel to the context's server with the context's identity; it connects on first use."""
    server = context.address(Transport.GRPC)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=context.read("ca"),
        private_key=context.read_key(),
        certificate_chain=context.read("certificate"),
    )
    options: list[tuple[str, int]] = [
        ("grpc.max_receive_message_length", _MAX_MESSAGE),
        ("grpc.max_send_message_length", _MAX_MESSAGE),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),  # a silent job may be followed for days
        # gRPC gives one attempt to connect at least this long (subchannel.cc, min_connect_timeout).
        ("grpc.min_reconnect_backoff_ms", int(CONNECT_SECONDS * 1000)),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.enable_http_proxy", 0 if _is_loopback(server) else 1),
    ]
    return grpc.aio.secure_channel(server, credentials, options=options)


def _is_loopback(server: str) -> bool:
    """Whether `server` is this machine, which no proxy can reach for us."""
    host = server.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
