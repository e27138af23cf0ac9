"""A unit whose cable is pulled: no byte says so, and still it is noticed long before the time-out of an answer."""

import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from qkdhw import open_unit
from qkdhw.errors import TransportClosedError

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="making a network needs root and iproute2"
)
# Runs side by side have a network each, or one would call the other's unit.
NETWORK = f"10.{64 + os.getpid() % 64}.{os.getpid() // 64 % 256}"
HOST, UNIT = f"{NETWORK}.1", f"{NETWORK}.2"
ANSWER_TIMEOUT_S, AWAY_S = 30.0, 4.0
SERVER = f"""
import sys
from qkdhw_emulators.in_process import make_unit
from qkdhw_emulators.line import Line
from qkdhw_emulators.servers.stream import StreamServer
from qkdhw_emulators.world import World
server = StreamServer()
world = World()
print(server.add_tcp(Line(make_unit("agilent-8156a", world), world), host="{UNIT}"), flush=True)
server.start()
sys.stdin.read()
server.close()
"""


def ip(*words):
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=10)


@pytest.fixture
def network(tmp_path_factory):
    """A network of one cable from this host to the unit's; yields the name of the unit's."""
    name = f"qkdhw{os.getpid() % 100000}"
    try:
        # Two that make the first namespaces of a machine at once hide them from each other.
        with (tmp_path_factory.getbasetemp().parent / "network.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    try:
        try:
            ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
            ip("addr", "add", f"{HOST}/30", "dev", f"{name}a")
            ip("link", "set", f"{name}a", "up")
            ip("-n", name, "addr", "add", f"{UNIT}/30", "dev", f"{name}b")
            ip("-n", name, "link", "set", f"{name}b", "up")
        except subprocess.CalledProcessError as error:  # in a root that is no mount point, for one
            pytest.skip(f"no network can be made here: {error.stderr.strip()}")
        yield name
    finally:
        ip("netns", "del", name)


def test_a_pulled_cable_is_noticed_while_an_answer_is_awaited(network):
    command = ["ip", "netns", "exec", network, sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        url = server.stdout.readline().strip()
        with open_unit("agilent-8156a", url, timeout_s=ANSWER_TIMEOUT_S) as unit:
            assert unit.attenuation_db == 0.0
            ip("-n", network, "link", "set", f"{network}b", "down")
            begun_s = time.monotonic()
            with pytest.raises(TransportClosedError), unit._exchange():
                unit._ask(":INP:ATT?")
            noticed_s = time.monotonic() - begun_s
            ip("-n", network, "link", "set", f"{network}b", "up")
            assert unit.attenuation_db == 0.0
        server.stdin.close()
    print(f"noticed after {noticed_s:.2f} s")
    assert noticed_s < ANSWER_TIMEOUT_S / 5  # by the connection, not by the time-out


def test_a_call_goes_on_after_the_cable_is_back(network):
    command = ["ip", "netns", "exec", network, sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        url = server.stdout.readline().strip()
        with open_unit("agilent-8156a", url, timeout_s=ANSWER_TIMEOUT_S) as unit:
            ip("-n", network, "link", "set", f"{network}b", "down")
            answers = []
            thread = threading.Thread(target=lambda: answers.append(unit.attenuation_db), daemon=True)
            thread.start()
            time.sleep(AWAY_S)
            assert answers == []
            ip("-n", network, "link", "set", f"{network}b", "up")
            begun_s = time.monotonic()
            thread.join()
            back_s = time.monotonic() - begun_s
        server.stdin.close()
    print(f"answered {back_s:.2f} s after the cable was back")
    assert answers == [0.0]
    assert back_s < ANSWER_TIMEOUT_S / 5  # by a new dial, not by the old one's patience
