"""Sifted bits per second of SeQUeNCe's BB84 beside the emulated link's, one run, one process, the same link.

Not a test: SeQUeNCe is no dependency. Where it is installed (`pip install sequence==0.8.5`):

    python tests/benchmarks/compare_sequence.py
"""

from __future__ import annotations

import json
import logging
import time

import numpy as np

from qkdhw_emulators.optics.setup import Channel, Detector, Intensity, OpticalSetup, Receiver, Source
from qkdhw_emulators.optics.simulation import LinkSimulation

PULSE_RATE_HZ = 80_000_000
MEAN_PHOTONS = 0.1
LOSS_DB = 10.0
EFFICIENCY = 0.5
DARK_HZ = 100
COUNT_RATE_HZ = 25_000_000
RUN_S = 10.0


def sequence_bits_per_s() -> float:
    """Simulate BB84 in SeQUeNCe for about ten seconds of real time; sifted bits per second of processor time."""
    import sequence.utils.encoding as encoding
    from sequence.components.optical_channel import ClassicalChannel, QuantumChannel
    from sequence.kernel.timeline import Timeline
    from sequence.qkd.BB84 import pair_bb84_protocols
    from sequence.topology.node import QKDNode

    logging.disable(logging.CRITICAL)
    timeline = Timeline(1e18)
    length_m = LOSS_DB / 0.2 * 1000
    source = {"frequency": PULSE_RATE_HZ, "mean_photon_num": MEAN_PHOTONS}
    templates = {"LightSource": source}
    alice = QKDNode("alice", timeline, encoding.polarization, stack_size=1, component_templates=templates)
    bob = QKDNode("bob", timeline, encoding.polarization, stack_size=1, component_templates=templates)
    alice.set_seed(1)
    bob.set_seed(2)
    for detector in range(2):
        bob.update_detector_params(detector, "efficiency", EFFICIENCY)
        bob.update_detector_params(detector, "dark_count", DARK_HZ)
        bob.update_detector_params(detector, "count_rate", COUNT_RATE_HZ)
    for one, other in ((alice, bob), (bob, alice)):
        quantum = QuantumChannel(f"q-{one.name}", timeline, distance=length_m, attenuation=0.0002)
        quantum.set_ends(one, other.name)
        classical = ClassicalChannel(f"c-{one.name}", timeline, distance=length_m)
        classical.set_ends(one, other.name)
    pair_bb84_protocols(alice.protocol_stack[0], bob.protocol_stack[0])
    keys: list[int] = []
    timeline.init()
    alice.protocol_stack[0].push(256, 1_000_000, 1e16)
    alice.protocol_stack[0].upper_protocols.append(_Sink(keys, timeline))
    begun_s = time.process_time()
    timeline.run()
    return 256 * len(keys) / (time.process_time() - begun_s)


class _Sink:
    """Takes keys and stops the simulation when it has run long enough."""

    def __init__(self, keys: list[int], timeline: object) -> None:
        self._keys, self._timeline = keys, timeline
        self._begun_s = time.process_time()

    def pop(self, info: int) -> None:
        self._keys.append(info)
        if time.process_time() - self._begun_s > RUN_S:
            self._timeline.stop()  # type: ignore[attr-defined]


def emulated_bits_per_s() -> float:
    """Simulate the same link here, decide which bits are sifted, and count them; per second of processor time."""
    detector = Detector(efficiency=EFFICIENCY, dark_count_rate_hz=DARK_HZ, dead_time_ns=1e9 / COUNT_RATE_HZ)
    setup = OpticalSetup(
        source=Source(
            pulse_rate_hz=PULSE_RATE_HZ, intensities=(Intensity(mean_photon_number=MEAN_PHOTONS, probability=1),)
        ),
        channel=Channel(length_km=LOSS_DB / 0.2),
        receiver=Receiver(basis_choice="active", detectors=(detector, detector)),
    )
    begun_s, bits = time.process_time(), 0
    with LinkSimulation(setup, seed=1) as simulation:
        while time.process_time() - begun_s < RUN_S:
            cell = simulation.next_cell()
            pulses = np.unique(cell.bob_origin[cell.bob_origin >= 0])
            basis = (simulation.prepared_at(pulses) >> 1) % 3
            bits += int(np.count_nonzero(basis == simulation.measured_at(pulses)))
    return bits / (time.process_time() - begun_s)


if __name__ == "__main__":
    theirs, ours = sequence_bits_per_s(), emulated_bits_per_s()
    print(json.dumps({"sequence_bits_per_s": theirs, "qkdhw_bits_per_s": ours, "ratio": ours / theirs}))
