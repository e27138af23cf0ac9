"""Units that never stop sending: whatever waits for silence ends at its deadline with an error that says so."""

import os
import re
import socket
import struct
import threading
import tty
from contextlib import contextmanager, suppress

import pytest

from qkdhw import open_unit
from qkdhw.errors import TransportTimeoutError, UnitError, WireFormatError
from qkdhw.transport import open_transport
from qkdhw.transport.byte_link import ByteLink

CHATTER_EVERY_S = 0.002
APT_IDENTITY = struct.pack("<HHBB", 6, 84, 0x81, 0x50) + struct.pack("<l8s72x", 123, b"K10CR1")
APT_HOMED = struct.pack("<HHBB", 0x464, 0, 0x01, 0x50)
APT_IDENTITY_WANTED, APT_POSITION_WANTED = (struct.pack("<H", message) for message in (0x0005, 0x0411))
NO_OPERATION = b"\xff\xf1"


class EndlessWire:
    """A wire from a device file that always has more."""

    keeps_messages = False
    fresh_when_reopened = True

    def __init__(self, timeout_s):
        self._file = os.open("/dev/zero", os.O_RDONLY)

    def receive(self, limit, *, timeout_s):
        return os.read(self._file, limit)

    def send(self, data, *, timeout_s):
        return len(data)

    def close(self):
        os.close(self._file)


@contextmanager
def serial_unit(answers, chatter=b""):
    """Yield the address of a serial unit that answers and, from its first answer on, says something by the way."""
    master, slave = os.openpty()
    tty.setraw(slave)
    tty.setraw(master)
    os.set_blocking(master, False)
    over = threading.Event()

    def run():
        heard, answered = b"", False
        while not over.wait(CHATTER_EVERY_S):
            with suppress(BlockingIOError):
                heard += os.read(master, 4096)
            for question, answer in answers.items():
                if question in heard:
                    heard, answered = b"", True
                    os.write(master, answer)
            if answered:
                with suppress(BlockingIOError):
                    os.write(master, chatter)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"serial://{os.ttyname(slave)}"
    finally:
        over.set()
        thread.join()
        os.close(master)
        os.close(slave)


@contextmanager
def server(talk):
    """Yield host and port of a server that has `talk` with each caller until the caller hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def converse(connection):
        with connection:
            try:
                talk(connection)
            except OSError:
                return

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=converse, args=[connection], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_input_that_does_not_end_is_thrown_away_until_the_deadline_only():
    with ByteLink("file:///dev/zero", EndlessWire) as link:
        with pytest.raises(WireFormatError, match="keeps sending"):
            link.discard_input()
        with pytest.raises(WireFormatError, match=r"within 0\.1 s"):
            link.read_until_quiet(0.01, timeout_s=0.1)


@pytest.mark.parametrize(
    ("name", "question", "answer"),
    [
        ("srs-dg645", b"*IDN?\n", b"Stanford Research Systems,DG645,s/n001,ver1\r\n"),
        ("agilent-8156a", b"*IDN?\n", b"HEWLETT-PACKARD,HP8156A,0,1.0\r\n"),
        ("oz-epc400", b"M?\r\n", b"Work Mode: DC\r\nDone\r\n"),
        ("oz-dd100", b"CD\r", b"IL: 1.0\r\nMAX ATTEN: 60\r\nDone\r\n"),
        ("sfifteen-ekpqc-sender", b"*IDN? ", b"Quantum\r\n"),
    ],
)
def test_a_chattering_serial_unit_is_not_opened(name, question, answer):
    with serial_unit({question: answer}, chatter=b"noise\r\n") as url, pytest.raises(WireFormatError, match="keeps"):
        open_unit(name, url, timeout_s=0.5)


def test_a_motor_that_reports_without_end_is_given_up():
    def talk(connection):
        while heard := connection.recv(4096):
            if APT_POSITION_WANTED in heard:
                while True:
                    connection.sendall(APT_HOMED * 1000)
            if APT_IDENTITY_WANTED in heard:
                connection.sendall(APT_IDENTITY)

    with (
        server(talk) as place,
        open_unit("thorlabs-k10cr1", f"tcp://{place}", timeout_s=0.5) as unit,
        pytest.raises((WireFormatError, TransportTimeoutError)),
    ):
        unit.read_position()


def test_a_terminal_server_that_only_says_that_it_lives_is_given_up():
    def talk(connection):
        while True:
            connection.sendall(NO_OPERATION * 1000)

    with server(talk) as place, pytest.raises(TransportTimeoutError, match="agrees to nothing"):
        open_transport(f"rfc2217://{place}", timeout_s=0.2)


def test_an_answer_that_may_be_key_is_not_quoted():
    key = b"0123321001233210"
    answers = {b"*IDN? ": b"Quantum\r\n", b"LASOFF ": b"LASER OFF!\r\n"}
    with serial_unit(answers) as url, open_unit("sfifteen-ekpqc-sender", url, timeout_s=1.0) as unit:
        answers[b"*IDN? "] = key + b"\r\n"
        with pytest.raises(UnitError, match="16 other characters") as caught:
            unit.identify()
        assert not re.search(r"[0-3]{4}", str(caught.value))
        answers[b"*IDN? "] = b"Quantum\r\n"  # it is asked once more before it is closed
