"""Emulated units over a real pseudo-terminal and real TCP, with nothing but the operating system's calls."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.faults import Fault
from qkdhw_emulators.serve import serve_link, serve_unit
from qkdhw_emulators.units.generic_tx import EmulatedGenericTx
from qkdhw_emulators.units.sfifteen_tdc1 import EmulatedSFifteenTdc1
from qkdhw_emulators.world import serial_number

TIMEOUT_S = 10.0


class Terminal:
    """The far end of a pseudo-terminal by os.read and os.write."""

    def __init__(self, url):
        self.fd = os.open(url.removeprefix("serial://"), os.O_RDWR | os.O_NOCTTY)
        assert os.ttyname(self.fd).startswith("/dev/")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.fd)

    def write(self, data):
        assert os.write(self.fd, data) == len(data)

    def read(self, size):
        out = b""
        while len(out) < size:
            assert select.select([self.fd], [], [], TIMEOUT_S)[0], f"have {len(out)} of {size} bytes"
            out += os.read(self.fd, size - len(out))
        return out

    def quiet(self, wait_s=0.2):
        return not select.select([self.fd], [], [], wait_s)[0]

    def drain(self):
        while select.select([self.fd], [], [], 0.2)[0]:
            os.read(self.fd, 65536)


def connect(url):
    host, port = url.removeprefix("tcp://").rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=TIMEOUT_S)


def line(stream):
    out = b""
    while not out.endswith(b"\n"):
        byte = stream.recv(1)
        assert byte, "closed"
        out += byte
    return out


def exactly(stream, size):
    out = b""
    while len(out) < size:
        piece = stream.recv(size - len(out))
        assert piece, "closed"
        out += piece
    return out


def records(stream, first, n):
    stream.sendall(b"REC? %d %d\n" % (first, n))
    got = int(line(stream).split()[2])
    return got, exactly(stream, got // 2 + 4)[:-4]


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def one_run(seed, *, slow_receiver):
    with serve_link(seed=seed) as link, connect(link.transmitter_url) as tx, Terminal(link.receiver_url) as rx:
        rx.write(b"*rst;nim;time 0;timestamp;counts?\r\n")
        tx.sendall(b"ARM\nSTART\n")
        assert (line(tx), line(tx)) == (b"OK\n", b"OK\n")
        stream = b"" if slow_receiver else rx.read(200_000)
        have, body = 0, b""
        while have < 2_000_000:
            n, piece = records(tx, have, 2_000_000 - have)
            have, body = have + n, body + piece
            stream += rx.read(50_000) if len(stream) < 200_000 else b""
        return body, (stream + rx.read(max(0, 200_000 - len(stream))))[:200_000]


def test_same_seed_same_bytes_over_real_transports():
    first = one_run(3, slow_receiver=False)
    assert one_run(3, slow_receiver=True) == first
    assert one_run(4, slow_receiver=False) != first


def test_nothing_comes_before_both_ends_have_started():
    with serve_link(seed=1) as link, connect(link.transmitter_url) as tx, Terminal(link.receiver_url) as rx:
        rx.write(b"timestamp;time 0;counts?\r\n")
        assert rx.quiet()
        tx.sendall(b"ARM\nSTART\n")
        assert len(rx.read(4000)) == 4000


def test_a_second_client_replaces_the_first_and_the_unit_keeps_its_state():
    with serve_unit(EmulatedGenericTx(), transport="tcp") as served, connect(served.url) as first:
        first.sendall(b"ARM\nSTAT")
        assert line(first) == b"OK\n"
        with connect(served.url) as second:
            second.sendall(b"STAT?\n")
            assert line(second).startswith(b"OK state=armed ")
            assert first.recv(1) == b""
        with connect(served.url) as third:
            third.sendall(b"STAT?\n")
            assert line(third).startswith(b"OK state=armed ")


def test_terminal_outlives_its_clients_even_one_that_left_a_stream_running():
    with serve_unit(EmulatedSFifteenTdc1(), transport="pty") as served:
        with Terminal(served.url) as rx:
            rx.write(b"timestamp;time 0;counts?\r\n")
            rx.read(4000)
        with Terminal(served.url) as rx:
            rx.write(b"*rst\r\n")
            rx.drain()
            rx.write(b"mode?\r\n")
            assert rx.read(3) == b"0\r\n"


def test_terminal_is_raw():
    with serve_unit(EmulatedSFifteenTdc1()) as served, Terminal(served.url) as rx:
        rx.write(b"time?;\x03\x04\x11\x13;\r\ntime?\r\n")
        assert rx.read(12) == b"1000\r\n1000\r\n"
        assert rx.quiet()


def test_a_client_that_asks_and_never_reads_does_not_fill_the_memory():
    with serve_unit(EmulatedGenericTx(), transport="tcp") as served, connect(served.url) as greedy:
        before = resident_bytes()
        greedy.sendall(b"ARM\nSTART\n" + b"REC? 0 4194304\n" * 250)
        time.sleep(0.5)
        assert resident_bytes() - before < 150e6
        with connect(served.url) as second:
            second.sendall(b"IDN?\n")
            assert line(second).startswith(b"OK qkdhw,")


def test_faults_can_be_switched_while_it_is_served():
    with serve_link(seed=1) as link, Terminal(link.receiver_url) as rx:
        link.receiver.faults.add(Fault.SILENT)
        rx.write(b"mode?\r\n")
        assert rx.quiet()
        link.receiver.faults.clear()
        rx.write(b"mode?\r\n")
        assert rx.read(3) == b"0\r\n"


def test_port_in_use_is_a_configuration_error():
    with serve_unit(EmulatedGenericTx(), transport="tcp") as served:
        port = int(served.url.rsplit(":", 1)[1])
        with pytest.raises(ConfigurationError, match="cannot listen"), serve_link(seed=1, transmitter_port=port):
            pass


def test_symbolic_link_does_not_replace_a_file(tmp_path):
    path = tmp_path / "rx"
    path.write_text("mine")
    with pytest.raises(ConfigurationError, match="symbolic link"), serve_link(seed=1, receiver_link=path):
        pass
    assert path.read_text() == "mine"


def begin(*arguments, module="qkdhw_emulators.serve"):
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("how", ["stdin", signal.SIGTERM, signal.SIGINT])
def test_command_says_where_and_ends_cleanly(how, tmp_path):
    path = tmp_path / "receiver"
    with begin("--seed", "7", "--loss-db", "3", "--eavesdropper", "intercept-resend", "--misalignment", "0.02",
               "--receiver-link", str(path), "--json") as process:  # fmt: skip
        where = json.loads(process.stdout.readline())
        assert set(where) == {"transmitter", "receiver"}
        assert where["receiver"] == f"serial://{path}"
        assert str(path.readlink()).startswith("/dev/")
        with connect(where["transmitter"]) as tx:
            tx.sendall(b"IDN?\n")
            assert serial_number(7).encode() in line(tx)
        if how == "stdin":
            process.stdin.close()
        else:
            process.send_signal(how)
        assert process.wait(TIMEOUT_S) == 0
        assert process.stdout.read() == ""
        assert process.stderr.read() == ""
    assert not path.is_symlink()


def test_command_with_a_wrong_parameter_says_what_to_do():
    with begin("--misalignment", "2", "--json") as process:
        assert process.wait(TIMEOUT_S) == 1
        message = process.stderr.read()
        assert "misalignment" in message
        assert "Allowed is 0 to 1" in message
        assert message.count("\n") == 1
