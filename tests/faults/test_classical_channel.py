"""The classical channel against a peer that stops, cuts, lies about lengths or is not there."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from qkdhw.errors import ConfigurationError, TransportClosedError, TransportError, TransportTimeoutError
from qkdhw.transport.classical import LIMIT_BYTES, ChannelListener, TcpClassicalChannel, parse_endpoint
from two_sites import channel_pair

SOON_S = 0.1
PATIENCE_S = 10.0


@pytest.fixture
def ends() -> Iterator[tuple[TcpClassicalChannel, socket.socket]]:
    """A channel, and the bare socket at its other end."""
    with (
        ChannelListener("127.0.0.1:0") as listener,
        TcpClassicalChannel.connect(f"127.0.0.1:{listener.port}") as channel,
        listener.accept_socket(timeout_s=PATIENCE_S) as peer,
    ):
        yield channel, peer


@pytest.mark.parametrize("size", [0, 1, 3, 1 << 20, (1 << 22) + 7])
def test_messages_arrive_whole_in_any_pieces(size: int) -> None:
    left, right = channel_pair()
    message = bytes(range(256)) * (size // 256 + 1)
    message = message[:size]
    with left, right:
        sender = threading.Thread(target=lambda: [left.send(message), left.send(b"next")])
        sender.start()
        assert right.receive(timeout_s=PATIENCE_S) == message
        assert right.receive(timeout_s=PATIENCE_S) == b"next"
        sender.join()
        assert left.sent_bytes == right.received_bytes == 8 + size + 4


def test_a_message_in_single_bytes(ends: tuple[TcpClassicalChannel, socket.socket]) -> None:
    channel, peer = ends
    for byte in struct.pack(">I", 3) + b"abc":
        peer.sendall(bytes([byte]))
    assert channel.receive(timeout_s=PATIENCE_S) == b"abc"


@pytest.mark.parametrize("size", [LIMIT_BYTES + 1, 0xFFFFFFFF])
def test_an_oversize_length_is_refused_before_anything_is_read(
    ends: tuple[TcpClassicalChannel, socket.socket], size: int
) -> None:
    channel, peer = ends
    peer.sendall(struct.pack(">I", size) + b"x" * 100)
    with pytest.raises(TransportError, match=f"{size} bytes; at most {LIMIT_BYTES}"):
        channel.receive(timeout_s=PATIENCE_S)


def test_an_announced_length_takes_no_memory_before_it_is_there(
    ends: tuple[TcpClassicalChannel, socket.socket],
) -> None:
    channel, peer = ends
    peer.sendall(struct.pack(">I", LIMIT_BYTES))
    peer.close()
    with pytest.raises(TransportClosedError):
        channel.receive(timeout_s=PATIENCE_S)


def test_own_messages_are_limited_too(ends: tuple[TcpClassicalChannel, socket.socket]) -> None:
    with pytest.raises(ValueError, match="at most"):
        ends[0].send(bytes(LIMIT_BYTES + 1))


@pytest.mark.parametrize("sent", [b"", b"\0\0", b"\0\0\0\x05", b"\0\0\0\x05abcd"])
def test_closed_in_mid_message(ends: tuple[TcpClassicalChannel, socket.socket], sent: bytes) -> None:
    channel, peer = ends
    peer.sendall(sent)
    peer.close()
    with pytest.raises(TransportClosedError, match="closed"):
        channel.receive(timeout_s=PATIENCE_S)


@pytest.mark.parametrize("sent", [b"", b"\0\0", b"\0\0\0\x05", b"\0\0\0\x05abcd"])
def test_silence_in_mid_message(ends: tuple[TcpClassicalChannel, socket.socket], sent: bytes) -> None:
    channel, peer = ends
    peer.sendall(sent)
    started = time.monotonic()
    with pytest.raises(TransportTimeoutError, match=f"within {SOON_S} s"):
        channel.receive(timeout_s=SOON_S)
    assert time.monotonic() - started < 2.0


def test_a_peer_that_drips_does_not_hold_the_site(ends: tuple[TcpClassicalChannel, socket.socket]) -> None:
    channel, peer = ends
    over = threading.Event()

    def drip() -> None:
        peer.sendall(struct.pack(">I", 1 << 20))
        with suppress(OSError):
            while not over.is_set():
                peer.sendall(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    started = time.monotonic()
    try:
        with pytest.raises(TransportTimeoutError):
            channel.receive(timeout_s=SOON_S)
        assert time.monotonic() - started < 1.0
    finally:
        over.set()
        channel.close()
        thread.join()


def test_a_peer_that_takes_nothing(ends: tuple[TcpClassicalChannel, socket.socket]) -> None:
    channel, _ = ends
    with pytest.raises(TransportTimeoutError, match="took no message"):
        channel.send(bytes(1 << 25), timeout_s=SOON_S)


def test_a_peer_that_is_gone(ends: tuple[TcpClassicalChannel, socket.socket]) -> None:
    channel, peer = ends
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()  # with a reset
    with pytest.raises(TransportClosedError, match="gone"):
        channel.receive(timeout_s=PATIENCE_S)
    with pytest.raises(TransportClosedError, match="gone"):
        channel.send(b"hello", timeout_s=PATIENCE_S)


def test_a_closed_channel_says_so(ends: tuple[TcpClassicalChannel, socket.socket]) -> None:
    channel, _ = ends
    channel.close()
    channel.close()
    with pytest.raises(TransportClosedError):
        channel.send(b"hello", timeout_s=PATIENCE_S)
    with pytest.raises(TransportClosedError):
        channel.receive(timeout_s=PATIENCE_S)


def test_nobody_listens() -> None:
    with ChannelListener("127.0.0.1:0") as listener:
        endpoint = f"127.0.0.1:{listener.port}"
    started = time.monotonic()
    with pytest.raises(TransportError, match=f"no peer site at {endpoint}: Connection refused") as raised:
        TcpClassicalChannel.connect(endpoint, timeout_s=0.2)
    assert raised.value.remedy
    assert time.monotonic() - started < 2.0


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(TransportError, match=r"no peer site at no-such-host\.invalid:5711") as raised:
        TcpClassicalChannel.connect("no-such-host.invalid:5711", timeout_s=0.2)
    assert raised.value.remedy


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":5711",
        "host",
        "host:",
        "host:port",
        "host:-1",
        "host:65536",
        "host:5711 ",
        "host:²",
        "a..b:1",
        "a\0b:1",
        f"{'a' * 64}:1",
    ],
)
def test_what_is_not_an_endpoint(text: str) -> None:
    for use in (parse_endpoint, TcpClassicalChannel.connect, ChannelListener):
        with pytest.raises(ConfigurationError, match="not host:port") as raised:
            use(text)
        assert raised.value.remedy


def test_endpoints() -> None:
    assert parse_endpoint("127.0.0.1:0") == ("127.0.0.1", 0)
    assert parse_endpoint("[::1]:5711") == ("::1", 5711)
    assert parse_endpoint("site-b.example.org:65535") == ("site-b.example.org", 65535)


def test_the_port_is_in_use() -> None:
    with ChannelListener("127.0.0.1:0") as listener:
        with pytest.raises(TransportError, match=f"cannot listen on 127.0.0.1:{listener.port}: .*in use") as raised:
            ChannelListener(f"127.0.0.1:{listener.port}")
        assert raised.value.remedy


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(TransportError, match=r"cannot listen on 192\.0\.2\.1:0"):
        ChannelListener("192.0.2.1:0")


def test_nobody_comes() -> None:
    with ChannelListener("127.0.0.1:0") as listener, pytest.raises(TransportTimeoutError, match="no peer site"):
        listener.accept(timeout_s=SOON_S)
