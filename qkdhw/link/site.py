"""The loop of one site: open what it has, meet the peer, make keys, and start again when a session breaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

from qkdhw.drivers import open_unit
from qkdhw.errors import (
    AuthenticationError,
    AuthenticationKeyExhaustedError,
    ConfigurationError,
    EventError,
    PostprocessingError,
    TransportError,
    TransportTimeoutError,
    UnitError,
)
from qkdhw.keys.account import AuthenticationAccount
from qkdhw.keys.kek import read_kek_file
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.link.blocks import Emit
from qkdhw.link.config import SiteConfig
from qkdhw.link.handover import TokenHandover
from qkdhw.link.monitoring import BlockWatch
from qkdhw.link.sessions import Site
from qkdhw.model import KeyState
from qkdhw.transport.classical import ChannelListener, TcpClassicalChannel

FIRST_BACK_OFF_S = 0.2
LONGEST_BACK_OFF_S = 5.0
MEET_STEP_S = 0.5


class _Patience:
    """How long a site goes on after broken sessions; a finished block renews it."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self.renew()

    def renew(self) -> None:
        self._give_up = time.monotonic() + self._patience_s
        self._back_off_s = FIRST_BACK_OFF_S

    def is_over(self) -> bool:
        return time.monotonic() > self._give_up

    def back_off(self, stop: threading.Event) -> None:
        stop.wait(self._back_off_s)
        self._back_off_s = min(2 * self._back_off_s, LONGEST_BACK_OFF_S)


def run_site(
    config: SiteConfig, emit: Emit, *, stop: threading.Event | None = None, watch: BlockWatch | None = None
) -> None:
    """Run one site until its blocks are done, or until `stop` is set.

    A broken session (peer gone, message refused, unit silent) is told through `emit` and begun anew with back-off;
    every session starts with a handshake that settles what was cut off.

    Args:
        config: The site.
        emit: Takes events as mappings that json can write; see docs/reference/link-events.md.
        stop: Set from elsewhere to end after the current message.
        watch: Observes each block of a receiver in place of the monitors that the site file asks for: to calibrate.

    Raises:
        QkdhwError: Something that trying again cannot mend: configuration, store, token, identity, or a peer that
            did not come back in time.
    """
    stop = stop or threading.Event()
    with ExitStack() as stack:
        site = stack.enter_context(_opened(config, emit, watch))
        listener = stack.enter_context(ChannelListener(config.channel.listen)) if config.channel.listen else None
        if listener is not None:
            emit({"event": "listening", "port": listener.port})
        patience = _Patience(config.channel.patience_s)
        refusal: AuthenticationError | None = None
        while (channel := _meet(config, listener, stop)) is not None:
            try:
                with channel:
                    site.run_session(channel, stop)
                return
            except AuthenticationKeyExhaustedError:
                raise
            except (TransportError, PostprocessingError, EventError, UnitError) as error:
                emit({"event": "session-broken", "error": type(error).__name__, "reason": str(error)})
                if stop.is_set():
                    return
                refusal = error if isinstance(error, AuthenticationError) else refusal
                if listener is not None and not site.met:
                    continue  # a stranger at the door must not use up this site's patience with its peer
                if site.progressed:
                    patience.renew()
                if patience.is_over():  # a wrong tag says more than the closed channels that followed from it
                    raise (refusal or error) from None
                patience.back_off(stop)


def _meet(config: SiteConfig, listener: ChannelListener | None, stop: threading.Event) -> TcpClassicalChannel | None:
    """Wait for the peer site as long as patience lasts; None if told to stop."""
    patience_s = config.channel.patience_s
    deadline = time.monotonic() + patience_s
    while not stop.is_set():
        try:
            if listener is not None:
                return listener.accept(timeout_s=MEET_STEP_S)
            return TcpClassicalChannel.connect(config.channel.connect or "", timeout_s=MEET_STEP_S)
        except TransportError as error:
            if time.monotonic() > deadline:
                where = f"listening on port {listener.port}" if listener else f"connecting to {config.channel.connect}"
                raise TransportTimeoutError(
                    f"the peer site did not come within {patience_s:g} s ({where}): {error}",
                    remedy="start the peer site, check channel.listen and channel.connect, or raise channel.patience_s",
                ) from error
    return None


@contextmanager
def _opened(config: SiteConfig, emit: Emit, watch: BlockWatch | None) -> Iterator[Site]:
    """Open store, token and unit, in the order in which a mistake is cheapest."""
    with ExitStack() as stack:
        kek = stack.enter_context(read_kek_file(config.keys.kek_file))
        store = stack.enter_context(SqliteKeyStore.open(config.keys.store, kek))
        account = stack.enter_context(AuthenticationAccount(store))
        if account.role != config.role:  # its masks would be those that the peer sends with
            raise ConfigurationError(
                f"the site file says role {config.role}, but the start key was installed for the {account.role}",
                remedy="correct role in the site file, or install the start key for the other role",
            )
        reserved = [record.key_id for record in store.records(state=KeyState.RESERVED)]
        if reserved:
            store.burn(reserved, reason="the site stopped while handing it over")
            emit({"event": "burnt", "keys": len(reserved)})
        handover = None
        if config.token is not None:
            journal_file = config.keys.store.with_name("export.journal")
            handover = stack.enter_context(TokenHandover(config.token, config.protocol.link, journal_file))
            if handover.recovered:
                burnt = sum(entry.state == "burnt" for entry in handover.recovered)
                emit({"event": "recovered", "exports": len(handover.recovered), "burnt": burnt})
        unit = stack.enter_context(open_unit(config.unit.name, config.unit.url))
        emit({"event": "unit", "info": asdict(unit.identify())})
        yield Site(config, emit, store, account, handover, unit, watch)
