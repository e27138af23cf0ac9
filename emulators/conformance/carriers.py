"""What each emulated unit is tested on, and how fast its time goes then."""

from __future__ import annotations

from importlib.metadata import entry_points

from qkdhw.drivers import load_driver
from qkdhw_emulators.in_process import emulator_class
from qkdhw_emulators.world import VirtualClock, World

OF_SCHEME = {
    "serial": ("pty", "rfc2217"),
    "tcp": ("tcp",),
    "visa": ("hislip", "vxi11", "usbtmc"),
    "usb": ("usb",),
    "zmq": ("zmq",),
}
PACES = {"oz-dd100": 20.0, "sfifteen-ekpqc-receiver": 10.0, "sfifteen-ekpqc-sender": 10.0, "thorlabs-mpc320": 10.0}


def emulated_names() -> list[str]:
    """Return the names of all installed emulators."""
    return sorted(point.name for point in entry_points(group="qkdhw.emulators"))


def carriers(name: str) -> list[str]:
    """Return what an emulated unit is put on to reach its driver in each way that the driver takes."""
    on = ["emu"] + [each for scheme in load_driver(name).schemes for each in OF_SCHEME[scheme]]
    return on if hasattr(emulator_class(name), "usb_descriptor") else [each for each in on if each != "usbtmc"]


def quick_world(name: str, *, seed: int = 1) -> World:
    """Return surroundings in which motors and boot loaders do not take as long as real ones."""
    return World(seed=seed, clock=VirtualClock(pace=PACES.get(name, 1.0)))
