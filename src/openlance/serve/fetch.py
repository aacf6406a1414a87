"""Images and videos by address, from hosts that the operator listed and no others.

A host's name is resolved once, every address that it has is looked at, and the connection goes to one of these, so that
no second answer of a name server can lead elsewhere. Redirects are not followed, proxies of the environment not used,
and all of it takes no longer than it may.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import SplitResult, urlsplit

from openlance.serve.config import ServeConfig
from openlance.serve.failures import Failure

PORTS = {"http": 80, "https": 443}
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
LONGEST = 4096  # characters of an address
Place = tuple[Any, ...]  # what socket.getaddrinfo tells of an address


def fetched(url: str, config: ServeConfig, param: str) -> bytes:
    """What is at an address.

    Raises:
        Failure: The host is not listed, its addresses are not global, or it gives nothing within the limits.
    """
    parts, port = _parts(url, config, param)
    host, secure = parts.hostname or "", parts.scheme == "https"
    end = time.monotonic() + config.media_seconds
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for *_, address in places:
            if not may_reach(str(address[0]), config.media_private):
                raise Failure(f"{param}: {host} is on a network that is not read", code="unsupported_url", param=param)
        with _connected(places, end) as sock, _ended_at(end, sock) as late:
            if secure:
                sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
            link = (HTTPSConnection if secure else HTTPConnection)(host, port)
            link.sock = sock
            try:
                return _body(link, parts, config.video_bytes, param)
            finally:
                link.close()
                if late.is_set():
                    raise TimeoutError("it took too long")
    except (OSError, HTTPException, ValueError) as error:
        reason = "it took too long" if isinstance(error, TimeoutError) else type(error).__name__
        message = f"{param}: nothing could be read from {host} ({reason})"
        raise Failure(message, code="media_unreachable", param=param) from error


def _parts(url: str, config: ServeConfig, param: str) -> tuple[SplitResult, int]:
    """The parts of an address that may be read, and its port."""
    try:
        parts = urlsplit(url if len(url) <= LONGEST else "")
        port = parts.port or PORTS.get(parts.scheme, 0)
    except ValueError:
        parts, port = urlsplit(""), 0
    plain = url.isascii() and url.isprintable() and not set(url) & set(" \\") and "@" not in parts.netloc
    host = (parts.hostname or "").lower()
    usual = port == PORTS.get(parts.scheme) and host in config.media_hosts
    if not plain or parts.scheme not in PORTS or not (usual or f"{host}:{port}" in config.media_hosts):
        listed = f" or addresses at {', '.join(config.media_hosts)}" if config.media_hosts else ", no addresses"
        message = f"{param}: only data URLs (data:image/png;base64,...) and uploads are read{listed}"
        raise Failure(message, code="unsupported_url", param=param)
    return parts, port


def may_reach(address: str, private: bool) -> bool:
    """Say whether something may be fetched from there; private: from own networks as well, though not from what a
    machine says of itself at a link-local address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.sixtofour is not None or ip.teredo is not None:
            return False  # tunnels, to any IPv4 address
        ip = ip.ipv4_mapped or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else ip)
    if ip.is_multicast or ip.is_unspecified or ip.is_link_local:
        return False
    return ip.is_global or (private and ip.is_private)


@contextmanager
def _connected(places: list[Place], end: float) -> Iterator[socket.socket]:
    """A connection to the first of some addresses that takes one. OSError if none does."""
    failed = OSError("no address")
    for family, kind, proto, _, address in places:
        with socket.socket(family, kind, proto) as sock:
            sock.settimeout(max(end - time.monotonic(), 0.001))
            try:
                sock.connect(address)
            except OSError as error:
                failed = error
                continue
            yield sock
            return
    raise failed


@contextmanager
def _ended_at(end: float, sock: socket.socket) -> Iterator[threading.Event]:
    """Shut a connection down when its time is over, whatever it is at; a host that sends a byte now and then cannot
    keep it. Gives whether that was so."""
    late = threading.Event()
    own = sock.dup()  # of the same connection, also when TLS has taken the other over

    def stop() -> None:
        late.set()
        try:
            own.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is closed already

    timer = threading.Timer(max(end - time.monotonic(), 0.0), stop)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()
        timer.join()
        own.close()


def _body(link: HTTPConnection, parts: SplitResult, most: int, param: str) -> bytes:
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    link.request("GET", path, headers={"Accept": "image/*, video/*", "Accept-Encoding": "identity"})
    response = link.getresponse()
    if response.status != 200:
        what = "a redirect, which is not followed" if 300 <= response.status < 400 else f"status {response.status}"
        raise Failure(f"{param}: {parts.hostname} answers with {what}", code="media_unreachable", param=param)
    said = response.getheader("content-length", "")
    if said.isdecimal() and int(said) > most:
        raise _too_large(most, param)
    data = response.read(most + 1)
    if len(data) > most:
        raise _too_large(most, param)
    if said.isdecimal() and len(data) < int(said):
        raise HTTPException("the connection ended early")
    return data


def _too_large(most: int, param: str) -> Failure:
    return Failure(f"{param}: more than the {most} bytes allowed", code="media_too_large", param=param)
