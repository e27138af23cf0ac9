"""Driver and emulator of the Acme RX9, a time tagger.

Source: Acme RX9 Programming Manual rev. C, chapter 4 (fictional).
"""

import re
from fractions import Fraction

import numpy as np

from qkdhw.drivers.setting import ChannelSetting, Reply, Setting
from qkdhw.drivers.text_tagger import TextTagger
from qkdhw.errors import WireFormatError
from qkdhw.model import DetectionBlock, EventKind
from qkdhw_emulators.units.table_unit import Entry
from qkdhw_emulators.units.tagger_unit import TaggerUnit


class AcmeRx9(TextTagger):
    """The RX9 as an `interfaces.TimeTagger`; a context manager."""

    vendor = "Acme"
    model = "RX9"
    idn_pattern = "^Acme,RX9,"
    done = "OK"
    refusal = "ERR"
    tick_ps = Fraction(81)
    running = Setting(
        bool, query="RUN?", command="RUN {value:d}", reply=Reply.ACK, restore=False, doc="Whether events are taken."
    )
    threshold_v = ChannelSetting(
        float, unit="V", minimum=-2, maximum=2, step=0.01, channels=(1, 2, 3, 4), reply=Reply.ACK,
        query="THR{channel}?", command="THR{channel} {value:.3f}", doc="Where a pulse counts.",
    )  # fmt: skip

    def _fetch_events(self, max_events: int) -> DetectionBlock:
        """Ask for events: the answer is how many come and how many were lost, then 8 bytes for each that comes."""
        counts = re.fullmatch(r"([0-9]{1,4}) ([0-9]{1,9})", self._ask(f"EVT? {min(max_events, 1000)}"))
        if counts is None:
            raise WireFormatError("EVT? was not answered by two counts", remedy="check the driver name")
        words = np.frombuffer(self._link.read_exactly(8 * int(counts[1]), timeout_s=self._timeout_s), "<u8")
        ticks, channel = (words >> 2).astype(np.int64), (words & 3).astype(np.uint8) + np.uint8(1)
        kind = np.full_like(channel, EventKind.PHOTON)
        return DetectionBlock(ticks, channel, kind, self.tick_ps, missed=int(counts[2]))


class EmulatedAcmeRx9(TaggerUnit):
    """The RX9 in steady light."""

    identity = "Acme,RX9,0042,1.0"
    tick_ps = Fraction(81)
    table = {"RUN": Entry(0, 1)} | {f"THR{n}": Entry(-2, 2, step=0.01, at_power_up=n / 10) for n in (1, 2, 3, 4)}

    def carry_out(self, command: str, argument: str) -> bytes:
        """Hand over events while it runs; anything else is in the table."""
        if command != "EVT?" or not argument.isdecimal() or not self.values["RUN"]:
            return super().carry_out(command, argument)
        ticks, channel, lost = self.take_events(min(int(argument), 1000))
        words = (ticks << 2 | channel - 1).astype("<u8")
        return f"{len(words)} {lost}\n".encode() + words.tobytes()
