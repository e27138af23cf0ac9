"""The RFC 2217 client against another author's server (pyserial's), and against what is none."""

import contextlib
import socket
import threading

import pytest
import serial
import serial.rfc2217

from qkdhw.errors import TransportClosedError, TransportError, TransportTimeoutError
from qkdhw.transport import open_transport
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.units.agilent_attenuator import EmulatedAgilent8156A

EVERY_BYTE = bytes(range(256)) * 40 + b"\xff\xff\xff"
SET_TO_9600 = bytes.fromhex("fffd2c fffa2c6500002580fff0 fffa2c6608fff0 fffa2c6701fff0 fffa2c6801fff0")


class Peer:
    """Takes one connection and keeps to `talk(connection)` until it hangs up."""

    def __init__(self, talk):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"rfc2217://127.0.0.1:{self.listener.getsockname()[1]}"
        self._talk = talk
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        connection, _ = self.listener.accept()
        with connection, contextlib.suppress(OSError):
            self._talk(connection)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._thread.join()
        self.listener.close()


class Sender:
    """Where pyserial's server writes to."""

    def __init__(self, connection):
        self.write = connection.sendall


def looped_port(port):
    """A terminal server whose serial port has a plug that sends back what it gets."""

    def talk(connection):
        manager = serial.rfc2217.PortManager(port, Sender(connection))
        while data := connection.recv(1000):
            port.write(b"".join(manager.filter(data)))
            connection.sendall(b"".join(manager.escape(port.read(port.in_waiting))))

    return talk


def until_hung_up(connection):
    while connection.recv(1000):
        pass


def test_every_byte_goes_through_pyserials_server_and_back():
    port = serial.serial_for_url("loop://", timeout=1)
    with Peer(looped_port(port)) as peer, open_transport(f"{peer.url}?baud=57600") as link:
        link.write(EVERY_BYTE)
        assert link.read_exactly(len(EVERY_BYTE)) == EVERY_BYTE
        assert (port.baudrate, port.bytesize, port.parity, port.stopbits) == (57600, 8, "N", 1)
        assert port.dtr
        assert port.rts


@pytest.mark.parametrize(
    ("words", "error", "why"),
    [
        (b"", TransportTimeoutError, "agrees to nothing"),
        (b"\xff\xfe\x2c", TransportClosedError, "does not let its port be set"),
        (b"\xff\xfd\x2c", TransportTimeoutError, "does not set its port"),
        (SET_TO_9600, TransportError, "115200 baud"),
        (b"\xff\xfa" + b"x" * 300, TransportClosedError, "without an end"),
    ],
)
def test_what_is_no_terminal_server(words, error, why):
    def talk(connection):
        connection.sendall(words)
        until_hung_up(connection)

    with Peer(talk) as peer, pytest.raises(error, match=why) as caught:
        open_transport(peer.url, timeout_s=0.1)
    assert caught.value.remedy


def test_options_are_answered_once_and_words_of_the_server_are_no_data():
    heard = bytearray()

    def talk(connection):
        port = serial.serial_for_url("loop://", timeout=1)
        manager = serial.rfc2217.PortManager(port, Sender(connection))
        while data := connection.recv(1000):
            heard.extend(data)
            if b"question" in b"".join(manager.filter(data)):
                ours = (
                    b"\xff\xfd\x18" * 3 + b"\xff\xf1\xff\xfa\x2c\x6b\xff\xff\xff\xf0"
                )  # DO terminal type; a modem's state
                for byte in b"ans" + ours + b"wer\n\xff\xff\n":
                    connection.sendall(bytes([byte]))

    with Peer(talk) as peer, open_transport(peer.url) as link:
        link.write(b"question")
        assert link.read_until(b"\n") == b"answer\n"
        assert link.read_until(b"\n") == b"\xff\n"
        link.write(b"more")  # and what was to be said with it
    assert heard.count(b"\xff\xfc\x18") == 1


def test_a_port_that_somebody_has():
    with serve_unit(EmulatedAgilent8156A(), transport="rfc2217") as served, open_transport(served.url) as link:
        with pytest.raises(TransportClosedError, match="RFC 2217") as caught:
            open_transport(served.url)
        assert "nobody else" in caught.value.remedy
        link.write(b"*IDN?\n")
        assert b"8156A" in link.read_until(b"\n")


def test_a_port_that_was_closed_can_be_opened_again_at_once():
    with serve_unit(EmulatedAgilent8156A(), transport="rfc2217") as served:
        for _ in range(100):
            with open_transport(served.url) as link:
                link.write(b"*IDN?\n")
                assert b"8156A" in link.read_until(b"\n")
