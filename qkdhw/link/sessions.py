"""What stays open at a site from one session to the next, and one session from handshake to farewell."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from qkdhw.errors import (
    AuthenticationKeyExhaustedError,
    ClockAlignmentError,
    ConfigurationError,
    PeerProtocolError,
    PostprocessingError,
    TransportClosedError,
)
from qkdhw.events.alignment import align_to_sync_frame
from qkdhw.events.gating import HISTOGRAM_BINS, Gate
from qkdhw.events.wiring import Wiring
from qkdhw.interfaces import TimeTagger, TransmitterUnit
from qkdhw.keys.account import AuthenticationAccount
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.link.blocks import (
    BlockResult,
    Context,
    DetectionCollector,
    Emit,
    Intensity,
    receive_block,
    transmit_block,
)
from qkdhw.link.config import ReceiverConfig, SiteConfig
from qkdhw.link.handover import TokenHandover
from qkdhw.link.monitoring import AlarmFile, BlockWatch, SiteMonitors, read_calibration
from qkdhw.link.peer import Peer, Session, open_session
from qkdhw.link.streams import DetectionReader, PreparationReader, join_blocks
from qkdhw.model import Basis
from qkdhw.postprocessing.authentication import Authenticator
from qkdhw.postprocessing.messages import Message, MessageKind
from qkdhw.postprocessing.session import Policy
from qkdhw.protocols.registry import load_proof
from qkdhw.quantities import PS_PER_S
from qkdhw.transport.classical import TcpClassicalChannel

if TYPE_CHECKING:
    from qkdhw.link.tls_handover import TlsHandover

PIECE_S = 0.05
SYNC_MARGIN_S = 0.25
HELD_EVENTS = 4_000_000
BLOCK_TIMEOUT_S = 3600.0
STOP_CHECK = "stop"
LEAST_MASKS = 48
MONITORS = ("laser_bias_ma", "laser_temperature_c", "mean_photon_number_0", "back_reflection_nw", "photocurrent_ua")


class Site:
    """What stays open from one session to the next."""

    def __init__(
        self,
        config: SiteConfig,
        emit: Emit,
        store: SqliteKeyStore,
        account: AuthenticationAccount,
        handover: TokenHandover | None,
        unit: Any,
        watch: BlockWatch | None = None,
    ) -> None:
        self._config = config
        self._emit = emit
        self._account = account
        self._handover = handover
        self._tls: TlsHandover | None = None
        if config.tls and handover:
            from qkdhw.link.tls_handover import TlsHandover

            self._tls = TlsHandover(config, config.tls, handover, emit)
        self._unit = unit
        self._done = 0
        self._exported: list[str] = []
        self.met = False
        self.progressed = False
        protocol = config.protocol
        monitors, digest = _monitors(config, emit) if watch is None else (None, "")
        self._context = Context(
            config=config,
            store=store,
            policy=Policy(
                proof=load_proof(protocol.proof),
                eps_sec=protocol.eps_sec,
                eps_cor=protocol.eps_cor,
                qber_limit=protocol.qber_limit,
                authentication_bytes=protocol.authentication_bytes,
            ),
            emit=emit,
            random_bytes=os.urandom,
            notes=_notes(config, unit) | ({"monitor_calibration": digest} if config.receiver else {}),
            watch=monitors.watch if monitors else watch,
            monitors=monitors,
        )

    def run_session(self, channel: TcpClassicalChannel, stop: threading.Event) -> None:
        """One session: handshake, clock, blocks, and what comes after the last block."""
        self.met = self.progressed = False
        peer = Peer(channel, Authenticator(self._account, self._config.role), timeout_s=self._config.channel.timeout_s)
        session = open_session(peer, self._config, self._context.store, os.urandom, done=self._done)
        self.met, self._done = True, session.done
        self._emit(
            {
                "event": "session",
                "session_id": session.session_id.hex(),
                "activated_blocks": session.activated,
                "burnt": session.burnt,
            }
        )
        if self._config.role == "transmitter":
            self._transmit(peer, session, stop)
        elif self._config.receiver is not None:
            self._receive(peer, session, stop, self._config.receiver)
        self._emit(
            {
                "event": "end",
                "counts": self._context.store.counts(),
                "sent_bytes": channel.sent_bytes,
                "received_bytes": channel.received_bytes,
            }
        )

    # --- transmitter ----------------------------------------------------------------------------------------------
    def _transmit(self, peer: Peer, session: Session, stop: threading.Event) -> None:
        unit: TransmitterUnit = self._unit
        protocol = self._config.protocol
        _stop_if_busy(unit)
        settings = dict(unit.configure(self._config.unit.settings))
        if int(settings["pulse_rate_hz"]) != protocol.pulse_rate_hz:
            raise ConfigurationError(
                f"the unit sends at {settings['pulse_rate_hz']} Hz, protocol.pulse_rate_hz is {protocol.pulse_rate_hz}",
                remedy="set both to a rate that the unit can do",
            )
        intensity: Intensity = (
            tuple(float(mean) for mean in settings["mean_photon_number"]),
            tuple(float(share) for share in settings["intensity_probability"]),
        )
        peer.receive(MessageKind.READY)
        unit.arm()
        unit.start()
        limit = protocol.sync_pulses + 2 * protocol.block_pulses
        with PreparationReader(unit, limit) as reader:
            record = reader.take(0, protocol.sync_pulses, timeout_s=self._config.channel.timeout_s)
            levels = {"mean_photon_number": intensity[0], "intensity_probability": intensity[1]}
            peer.send(Message(MessageKind.SYNC, {"first_slot": 0, "settings": levels}, (record.tobytes(),)))
            aligned = peer.receive(MessageKind.ALIGNED, MessageKind.ABORT)
            if aligned.kind is MessageKind.ABORT:
                raise PostprocessingError(f"the receiver's site could not align clocks: {aligned.fields['reason']}")
            for block_id, place in self._places(session):
                announced = peer.receive(MessageKind.ANNOUNCE, MessageKind.BYE, timeout_s=BLOCK_TIMEOUT_S)
                if announced.kind is MessageKind.BYE or stop.is_set():
                    self._part(peer, unit, announced)
                    if not stop.is_set():
                        raise TransportClosedError("the receiver's site was told to stop")
                    return
                result = transmit_block(
                    self._context, peer, reader, session.session_id, block_id, place, intensity, announced
                )
                self._finish_block(peer, result, {"status": asdict(unit.read_status())})
        unit.stop()
        if self._tls is not None and self._exported:
            self._tls.serve(peer, self._exported)
        peer.send(Message(MessageKind.BYE))
        peer.receive(MessageKind.BYE)

    def _part(self, peer: Peer, unit: TransmitterUnit, announced: Message) -> None:
        """End a session before its blocks are done, because either site was told to stop."""
        unit.stop()
        if announced.kind is MessageKind.ANNOUNCE:
            reason = {"check": STOP_CHECK, "reason": "the transmitter's site was told to stop", "value": None}
            peer.send(Message(MessageKind.ABORT, reason))
            peer.receive(MessageKind.BYE)
        peer.send(Message(MessageKind.BYE))

    # --- receiver -------------------------------------------------------------------------------------------------
    def _receive(self, peer: Peer, session: Session, stop: threading.Event, receiver: ReceiverConfig) -> None:
        unit: TimeTagger = self._unit
        _stop_if_busy(unit)
        unit.start()
        with DetectionReader(unit, PIECE_S, HELD_EVENTS) as reader:
            peer.send(Message(MessageKind.READY))
            sync = peer.receive(MessageKind.SYNC)
            intensity = _parse_intensity(sync.fields["settings"])
            collector, gate = self._align(peer, reader, sync, receiver)
            for block_id, place in self._places(session):
                if stop.is_set():
                    break
                result = receive_block(self._context, peer, collector, session.session_id, block_id, place, intensity)
                if result.statistics.failed_check == STOP_CHECK:
                    unit.stop()
                    peer.send(Message(MessageKind.BYE))
                    peer.receive(MessageKind.BYE)
                    raise TransportClosedError("the transmitter's site was told to stop")
                extra: dict[str, Any] = {"gating": self._gating_report(gate, receiver.window_ps)}
                if self._context.monitors is not None:
                    extra["monitors"] = self._context.monitors.report()
                self._finish_block(peer, result, extra)
            else:
                unit.stop()
                self._finish_session(peer)
                return
        unit.stop()
        peer.send(Message(MessageKind.BYE))
        peer.receive(MessageKind.BYE)

    def _finish_session(self, peer: Peer) -> None:
        """All blocks are done: the transmitter's site says whether a TLS session is to follow."""
        last = peer.receive(MessageKind.SESSION, MessageKind.BYE)
        if last.kind is MessageKind.SESSION:
            if self._tls is None:
                raise PeerProtocolError(
                    "the transmitter's site wants a TLS session",
                    remedy="add the section [tls] at both sites or at none",
                )
            self._tls.connect(last)
            peer.receive(MessageKind.BYE)
        peer.send(Message(MessageKind.BYE))

    def _align(
        self, peer: Peer, reader: DetectionReader, sync: Message, receiver: ReceiverConfig
    ) -> tuple[DetectionCollector, Gate]:
        """Find the clock from the disclosed sync frame and feed the gate with what was read for it."""
        config, protocol = self._config, self._config.protocol
        record = np.frombuffer(sync.parts[0], np.uint8)
        wanted_s = record.size / protocol.pulse_rate_hz + SYNC_MARGIN_S
        pieces = [reader.next_piece(timeout_s=config.channel.timeout_s) for _ in range(math.ceil(wanted_s / PIECE_S))]
        tick_ps = pieces[0].tick_ps
        period_ticks = Fraction(PS_PER_S, protocol.pulse_rate_hz) / tick_ps
        wiring = Wiring({d.channel: (Basis[d.basis.upper()], d.bit) for d in receiver.wiring})
        try:
            found = align_to_sync_frame(
                join_blocks(pieces),
                wiring,
                record,
                int(sync.fields["first_slot"]),
                period_ticks,
                max_ppm=protocol.max_clock_ppm,
            )
        except ClockAlignmentError as error:
            peer.send(Message(MessageKind.ABORT, {"check": "clock", "reason": str(error), "value": None}))
            raise
        clock_ppm = 1e6 * float(found.clock.period_ticks / period_ticks - 1)
        alignment = {"significance": found.significance, "clock_ppm": clock_ppm}
        self._emit({"event": "aligned", **alignment, "qber": found.qber_estimate})
        peer.send(Message(MessageKind.ALIGNED, alignment))
        gate = Gate(
            found.clock,
            wiring,
            receiver.window_ps,
            receiver.dead_time_ps,
            tick_ps,
            random_bytes=_multi_click_source(receiver.multi_click_seed),
        )
        collector = DetectionCollector(reader, gate, self._emit)
        if self._context.watch is not None:
            self._context.watch.attach(gate)
        for piece in pieces:
            collector.feed(piece)
        return collector, gate

    def _gating_report(self, gate: Gate, window_ps: int) -> dict[str, Any]:
        """What became of the clicks so far, and where in the slot they came."""
        half_ps = PS_PER_S / self._config.protocol.pulse_rate_hz / 2
        return {
            **asdict(gate.statistics),
            "histogram": gate.residual_histogram.tolist(),
            "edges_ps": np.linspace(-half_ps, half_ps, HISTOGRAM_BINS + 1).tolist(),
            "window_ps": window_ps,
        }

    # --- both -----------------------------------------------------------------------------------------------------
    def _places(self, session: Session) -> Iterator[tuple[int, tuple[int, int]]]:
        """Number the blocks of this session and say which slots they cover."""
        protocol = self._config.protocol
        index = 0
        while protocol.blocks == 0 or self._done < protocol.blocks:
            left = min(self._account.available_send_masks(), self._account.available_receive_masks())
            if left < LEAST_MASKS:  # a block must not run out in the middle: its own refill would come too late
                raise AuthenticationKeyExhaustedError(
                    f"{left} authentication masks are left, a block may need {LEAST_MASKS}",
                    remedy="make new stores with a new start key at both sites; larger blocks or a larger "
                    "protocol.authentication_bytes refill faster",
                )
            place = (protocol.sync_pulses + index * protocol.block_pulses, protocol.block_pulses)
            yield session.next_block_id + index, place
            index += 1

    def _finish_block(self, peer: Peer, result: BlockResult, extra: dict[str, Any]) -> None:
        self._done += 1
        self.progressed = True
        self._emit({"event": "block", "statistics": asdict(result.statistics), **extra})
        count = min(self._config.protocol.keys_per_block_to_token, len(result.key_ids))
        if count and self._handover is not None:
            exported = self._handover.export(
                peer, self._context.store, list(result.key_ids[:count]), role=self._config.role
            )
            self._exported += exported
            self._emit({"event": "exported", "keys": len(exported), "confirmed": len(exported)})


def _monitors(config: SiteConfig, emit: Emit) -> tuple[SiteMonitors | None, str]:
    """Make the monitors that the site file asks for, and tell which alarms stand from before."""
    chosen = config.receiver.monitors if config.receiver is not None else None
    if chosen is None:
        return None, ""
    calibration, digest = read_calibration(chosen.calibration)
    alarms = AlarmFile(chosen.alarms)
    for alarm in alarms.standing().values():
        emit({"event": "alarm", **alarm.model_dump(mode="json")})
    return SiteMonitors(calibration, alarms, emit), digest


def _notes(config: SiteConfig, unit: Any) -> dict[str, Any]:
    """Facts for every key's metadata: which unit, which monitors it does not have, what is only emulated."""
    status = unit.read_status()
    notes: dict[str, Any] = {
        "unit": asdict(unit.identify()),
        "authentication": "wegman-carter",
        "unmonitored": [name for name in MONITORS if name not in status.monitors],
    }
    if config.receiver is not None and config.receiver.multi_click_seed is not None:
        notes["emulation_only"] = "random choices for multiple clicks were seeded"
    return notes


def _stop_if_busy(unit: TransmitterUnit | TimeTagger) -> None:
    """Bring a unit to rest that an earlier session, or a site that was killed, has left running."""
    if unit.read_status().state in {"armed", "running"}:
        unit.stop()


def _multi_click_source(seed: int | None) -> Any:
    return os.urandom if seed is None else np.random.default_rng(seed).bytes


def _parse_intensity(settings: dict[str, Any]) -> Intensity:
    """Read the transmitter's intensities from SYNC, strictly."""
    means, shares = settings.get("mean_photon_number"), settings.get("intensity_probability")
    for values in (means, shares):
        if not isinstance(values, list) or len(values) not in {2, 3} or not all(_is_finite(v) for v in values):
            raise PostprocessingError("the transmitter's site sent malformed intensities")
    return tuple(means or ()), tuple(shares or ())


def _is_finite(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)
