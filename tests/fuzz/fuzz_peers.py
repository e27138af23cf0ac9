"""Fuzz targets of what a site receives from its peer, and of packets and lines of text of units.

Whatever comes is read, or refused with the typed error of its sort. What was read is encoded to the same octets.
"""

from __future__ import annotations

import contextlib
import struct
from fractions import Fraction
from functools import cache

import numpy as np
from fuzz_target import Target

from qkdhw.drivers import apt_packets, idq_settings, single_quantum_websq
from qkdhw.errors import PeerProtocolError, WireFormatError
from qkdhw.postprocessing import messages
from qkdhw.postprocessing.announced_times import announced_times, parse_unplaced_reply, unplaced_answer
from qkdhw.postprocessing.pair_sifting import AnnouncedClock, PairAnnouncer, PairSifter
from qkdhw.postprocessing.sifting import announce, parse_announcement, sift_at_receiver

_LATE = 1 << 50


def check_announcement(data: bytes) -> None:
    """Read an announcement of detections: one block has exactly one encoding."""
    with contextlib.suppress(PeerProtocolError):
        slot, basis = parse_announcement(data)
        assert (np.diff(slot) > 0).all()
        assert announce(slot, basis) == data
    slot = np.cumsum(1 + np.frombuffer(data[: len(data) // 2 * 2], "<u2").astype(np.int64) ** 3)
    basis = np.frombuffer(data, np.uint8, len(slot)) & 1
    read_slot, read_basis = parse_announcement(announce(slot, basis))
    assert (read_slot == slot).all()
    assert (read_basis == basis).all()


def check_sift_reply(data: bytes) -> None:
    """Sift by a reply: only bits that were announced in this basis come out."""
    n = len(data) // 2
    reply, own = np.frombuffer(data, np.uint8, n), np.frombuffer(data, np.uint8, n, n)
    with contextlib.suppress(PeerProtocolError):
        sifted = sift_at_receiver(own & 1, own >> 1 & 1, reply)
        assert len(sifted.key_bits) + len(sifted.test_bits) == np.count_nonzero(reply)
        assert len(sifted.key_bits) == len(sifted.key_intensity)


def check_message(data: bytes) -> None:
    """Read a message; what was read is encoded and read again as the same octets."""
    with contextlib.suppress(PeerProtocolError):
        octets = messages.encode_message(messages.decode_message(data))
        assert messages.encode_message(messages.decode_message(octets)) == octets


@cache
def own_events() -> tuple[np.ndarray, np.ndarray]:
    """Return detections of our own."""
    ticks = np.cumsum(np.arange(200, dtype=np.int64) * 37 % 91)
    return ticks, (ticks % 4).astype(np.uint8)


def answers_to(message: bytes, pieces: int) -> list[object]:
    """Announce to a sifter, which gets its own events in pieces, and return its answers, or that it refused."""
    sifter = PairSifter(AnnouncedClock(offset_ticks=0, ticks_per_unit=Fraction(1)), window_ticks=3, tracking_ticks=6)
    ticks, detectors = own_events()
    answers: list[object] = []
    try:
        sifter.add_announcement(message)
        for part in np.array_split(np.arange(len(ticks)), pieces):
            sifter.add_events(ticks[part], detectors[part])
            answers += [(a.reply, a.sifted.key_bits.tobytes(), a.sifted.test_bits.tobytes()) for a in sifter.answers()]
        sifter.close()
        answers += [(a.reply, a.sifted.key_bits.tobytes(), a.sifted.test_bits.tobytes()) for a in sifter.answers()]
    except PeerProtocolError:
        return ["refused"]
    return answers


def check_pair_announcement(data: bytes) -> None:
    """Answer an announcement of pairs, own events in one piece and in several; its times are read of what is answered."""
    answers = answers_to(data, 1)
    assert answers == answers_to(data, 2 + len(data) % 5)
    try:
        _, units = announced_times(data)
    except PeerProtocolError:
        assert answers == ["refused"]
        return
    assert answers != ["refused"]
    assert (np.diff(units) >= 0).all()


def check_pair_reply(data: bytes) -> None:
    """Take a reply to an announcement of pairs; one that is refused changes nothing."""
    number = parse_unplaced_reply(data)
    assert number is None or unplaced_answer(number, 0).reply == data
    announcer = PairAnnouncer()
    announcer.announce(*own_events())
    with contextlib.suppress(PeerProtocolError):
        sifted = announcer.accept(data)
        assert sifted.n_key + sifted.n_test == len(sifted.kept)
        assert (np.diff(sifted.kept) > 0).all()
        return
    assert announcer.accept(_pair_reply()).n_key > 0


def _pair_announcement() -> bytes:
    return PairAnnouncer().announce(*own_events())


@cache
def _pair_reply() -> bytes:
    return answers_to(_pair_announcement(), 1)[0][0]  # type: ignore[index]


def check_apt_packets(data: bytes) -> None:
    """Look for each packet that a unit may send, and read a header at every place."""
    for message in apt_packets.DATA_BYTES:
        found = apt_packets.find_packet(data, message)
        if found is not None:
            packet, end = found
            assert packet.message == message
            assert apt_packets.HEADER_BYTES + len(packet.data) <= end <= len(data)
            assert len(packet.data) in apt_packets.DATA_BYTES[message]
            assert packet.channel is None or 0 <= packet.channel <= 0xFFFF
    with contextlib.suppress(WireFormatError):
        size = apt_packets.data_bytes_after(data[:6].ljust(6, b"\0"))
        assert len(apt_packets.decode_packet(data[:6], data[6 : 6 + size]).data) <= size


def check_unit_text(data: bytes) -> None:
    """Read a line as quantities and as labels, as several drivers do."""
    text = data.decode("latin-1")
    for read in (idq_settings.volts_of, idq_settings.picoseconds_of):
        with contextlib.suppress(ValueError):
            read(text)
    with contextlib.suppress(WireFormatError):
        for labels in single_quantum_websq._json_objects(data):
            with contextlib.suppress(KeyError):
                single_quantum_websq._checked_labels(labels)


def _announcement_seeds() -> list[bytes]:
    return [
        announce(np.cumsum(np.arange(1, n, dtype=np.int64) * step), np.arange(1, n, dtype=np.uint8) % 2)
        for n, step in ((1, 1), (2, _LATE), (20, 7), (30, 3000))
    ]


def _message_seeds() -> list[bytes]:
    values = {int: 1, str: "a", list: [1, "b"], dict: {"c": 2.5}, float: 0.5, type(None): None}
    return [
        messages.encode_message(
            messages.Message(kind, {name: values[types[0]] for name, types in fields.items()}, (b"part",) * n_parts)
        )
        for kind, (fields, n_parts) in messages.SCHEMA.items()
    ]


def _apt_seeds() -> list[bytes]:
    return [
        struct.pack("<HHBB", message, size, 0x81 if size else 1, 0x50) + bytes(range(size))
        for message, sizes in apt_packets.DATA_BYTES.items()
        for size in sizes
    ]


def _text_seeds() -> list[bytes]:
    labels = b'{"NumberOfDetectors": 2, "InptMeasurementPeriod": 100, "BiasCurrent": [1.5, 2], "TriggerLevel": [1, -2], "DetectorEnable": true}'
    return [b"0.499712V", b"500 mV", b"3000 GTB", b"1e9999999V", labels, b"{} " + labels, b"{"]


TARGETS = {
    "parse_announcement": Target(check_announcement, _announcement_seeds),
    "sift_reply": Target(check_sift_reply, lambda: [bytes(20), bytes([1, 2, 3, 0] * 8)]),
    "decode_message": Target(check_message, _message_seeds),
    "pair_announcement": Target(check_pair_announcement, lambda: [_pair_announcement(), _pair_announcement()[:40]]),
    "pair_reply": Target(check_pair_reply, lambda: [_pair_reply(), _pair_reply()[:16], unplaced_answer(0, 200).reply]),
    "apt_packets": Target(check_apt_packets, _apt_seeds, 128),
    "unit_text": Target(check_unit_text, _text_seeds, 256),
}
