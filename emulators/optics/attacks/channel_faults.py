"""Faults of the fibre, and light that enters it."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.attack import Attack, LinkCondition
from qkdhw_emulators.optics.setup import OpticalSetup

CUT_DB = 300.0
PS_PER_US = 1e6


def _with_channel(setup: OpticalSetup, **changes: float) -> OpticalSetup:
    return setup.model_copy(update={"channel": setup.channel.model_copy(update=changes)})


class FibreCut(Attack):
    """No light of the sender arrives.

    A repair ends it, and begins a fibre-splice.

    Signature: dark and background counts remain, QBER 1/2.
    Source: G.652 fibre practice; nothing to model.
    """

    name: ClassVar[str] = "fibre-cut"

    def change_setup(self, setup: OpticalSetup, since_s: float) -> OpticalSetup:
        """Return the setup with an opaque channel."""
        del since_s
        return _with_channel(setup, connector_loss_db=CUT_DB)


class FibreSplice(Attack):
    """The fibre has another length and one more splice.

    Signature: arrival times step by the delay of the added length, the rate falls by its loss.
    Source: G.652 fibre practice: 4.9 us/km, splices of 0.02 to 0.3 dB.

    Attributes:
        added_km: Length added.
        loss_db: Loss of the splice.
    """

    name: ClassVar[str] = "fibre-splice"

    added_km: float = Field(default=0.01, ge=-2000, le=2000)
    loss_db: float = Field(default=0.2, ge=0, le=100)

    def change_setup(self, setup: OpticalSetup, since_s: float) -> OpticalSetup:
        """Return the setup with the other fibre."""
        del since_s
        channel = setup.channel
        length_km = channel.length_km + self.added_km
        if length_km < 0:
            raise ConfigurationError(
                f"attack {self.name}: added_km is {self.added_km}, the fibre has {channel.length_km} km only",
                remedy="take away less than there is",
            )
        return _with_channel(
            setup, length_km=length_km, connector_loss_db=min(CUT_DB, channel.connector_loss_db + self.loss_db)
        )

    def change_condition(self, condition: LinkCondition, setup: OpticalSetup, since_s: float) -> None:
        """Let light take another time."""
        del since_s
        condition.delay_ps += self.added_km * setup.channel.group_delay_us_per_km * PS_PER_US


class ThermalDrift(Attack):
    """The fibre warms: light takes longer.

    Signature: arrival times drift by the fibre's coefficient; the temperature monitor rises.
    Source: 37 to 40 ps/(km K) for bare fibre, see `Channel.thermal_delay_ps_per_km_k`.

    Attributes:
        kelvin_per_s: How fast it warms.
    """

    name: ClassVar[str] = "thermal-drift"
    varies: ClassVar[bool] = True

    kelvin_per_s: float = Field(default=0.001, ge=-10, le=10)

    def change_condition(self, condition: LinkCondition, setup: OpticalSetup, since_s: float) -> None:
        """Let light take another time."""
        kelvin = self.kelvin_per_s * since_s
        ps_per_k = setup.channel.thermal_delay_ps_per_km_k * setup.channel.length_km
        condition.delay_ps += kelvin * ps_per_k
        condition.delay_ps_per_s += self.kelvin_per_s * ps_per_k
        condition.monitors["temperature_c"] += kelvin


class BackgroundLight(Attack):
    """Light that has nothing to do with the sender enters the receiver.

    Signature: counts rise between the pulses too, and the gain of the vacuum decoy; QBER tends to 1/2.
    Source: N. A. Peters et al., New J. Phys. 11, 045012 (2009), on Raman light from classical channels.

    Attributes:
        rate_hz: Photons per second at the receiver's input.
    """

    name: ClassVar[str] = "background-light"

    rate_hz: float = Field(default=1e5, ge=0, le=1e9)

    def change_setup(self, setup: OpticalSetup, since_s: float) -> OpticalSetup:
        """Return the setup with more background."""
        del since_s
        return _with_channel(setup, background_rate_hz=setup.channel.background_rate_hz + self.rate_hz)
