"""A unit that was unplugged and comes back: a call that waits for it goes on at the first dial or so that can succeed."""

import threading
import time
from contextlib import ExitStack

import pytest

from qkdhw.drivers import load_driver
from qkdhw.transport import open_transport
from qkdhw.transport.byte_link import REDIAL_LONGEST_S
from qkdhw_emulators.in_process import make_unit
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.world import World

PATIENCE_S = 60.0
AWAY_S = 0.6
MOST_DIALS = 3
CARRIERS = [
    ("agilent-8156a", "tcp"), ("agilent-8156a", "pty"), ("agilent-8156a", "hislip"), ("agilent-8156a", "vxi11"),
    ("oz-epc400", "rfc2217"), ("thorlabs-itc4000", "usbtmc"), ("idq-id900", "zmq"), ("cqt-fx2", "usb"),
]  # fmt: skip


class Plug:
    """An emulated unit that can be unplugged and plugged in again at the same address."""

    def __init__(self, name, on, folder):
        self._world = World(seed=1)
        self._unit = make_unit(name, self._world)
        self._on, self._folder, self._port = on, folder, 0
        self._stack = ExitStack()

    def plug_in(self):
        served = self._stack.enter_context(
            serve_unit(
                self._unit, self._world, transport=self._on, port=self._port,
                path=self._folder / "unit" if self._on == "pty" else None,
            )
        )  # fmt: skip
        address = served.url.partition("127.0.0.1")[2]
        digits = "".join(
            each if each.isdigit() else " " for each in address.replace("hislip0", "").replace("inst0", "")
        )
        self._port = int(digits.split()[0]) if digits.split() else 0
        return served.url

    def unplug(self):
        self._stack.close()


class Dials:
    """When a link dialled."""

    def __init__(self, link):
        self.begun_s = []
        self._dial = link._dial
        link._dial = self._counted

    def _counted(self, timeout_s):
        self.begun_s.append(time.monotonic())
        return self._dial(timeout_s)


@pytest.fixture(autouse=True)
def another_usb_unit():
    """Another unit stays plugged in: the computer does not lose its USB with the one that is unplugged."""
    world = World(seed=2)
    with serve_unit(make_unit("idq-quantis", world), world, transport="usb"):
        yield


@pytest.mark.timeout(90)
@pytest.mark.parametrize(("name", "on"), CARRIERS)
def test_a_waiting_call_goes_on_as_soon_as_the_unit_is_back(name, on, tmp_path):
    assert REDIAL_LONGEST_S <= 0.05
    plug = Plug(name, on, tmp_path)
    link = open_transport(plug.plug_in())
    dials, answers = Dials(link), []
    with load_driver(name)(link, timeout_s=PATIENCE_S) as unit:
        known = unit.identify()
        plug.unplug()

        def ask():
            answers.append(unit.identify())
            answers.append(time.monotonic())

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        time.sleep(AWAY_S)
        assert answers == []
        plug.plug_in()
        back_s = time.monotonic()
        thread.join()
        plug.unplug()
    before = sum(each < back_s for each in dials.begun_s)
    since = len(dials.begun_s) - before
    print(f"\n{name} on {on}: {1000 * (answers[1] - back_s):.0f} ms after it was back, dials {before} and {since}")
    assert answers[0] == known
    assert since <= MOST_DIALS
