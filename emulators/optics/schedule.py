"""Which attacks and faults a link meets, and when: from TOML or from a command line."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import ValidationError

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.attack import Attack
from qkdhw_emulators.optics.attacks import ATTACKS
from qkdhw_emulators.optics.attacks.intercept import check_order
from qkdhw_emulators.optics.nearest_name import did_you_mean
from qkdhw_emulators.optics.setup import OpticalSetup

MAX_ATTACKS = 64
MAX_TEXT_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Schedule:
    """Attacks and faults, each with its time.

    Attributes:
        attacks: In the order in which they act on a pulse, from the sender to the receiver.
    """

    attacks: tuple[Attack, ...] = ()

    @classmethod
    def from_toml(cls, text: str, where: str = "attack schedule") -> Self:
        """Read a schedule: a table `[[attack]]` for each, with `name`, `from_s`, `until_s` and the attack's own fields.

        Args:
            text: TOML, at most 64 KiB and 64 attacks.
            where: Where it is from, such as the path of a file: what error messages begin with.

        Raises:
            ConfigurationError: It is no such TOML, or has an attack twice at the same time; the message names the
                attack and the field.
        """
        if len(text.encode()) > MAX_TEXT_BYTES:
            raise ConfigurationError(
                f"{where} is above {MAX_TEXT_BYTES} bytes", remedy="a schedule has a few lines for each attack"
            )
        try:
            content = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"{where}: not TOML: {error}", remedy="correct that line") from error
        tables = content.pop("attack", [])
        if content or not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
            other = ", ".join(content) or "attack"
            meant = "did you mean [[attack]]? " if did_you_mean(other, ["attack"]) else ""
            raise ConfigurationError(
                f"{where}: {other} is not expected", remedy=f"{meant}write a table [[attack]] for each attack"
            )
        return cls._of([attack_from(table, f"{where}: attack {i}") for i, table in enumerate(tables, start=1)], where)

    @classmethod
    def from_arguments(cls, texts: list[str]) -> Self:
        """Read attacks as a command line gives them: `intercept-resend:fraction=0.4,from_s=1`.

        Args:
            texts: One for each attack: its name, then a colon and fields with commas between them.

        Raises:
            ConfigurationError: A text is wrong, or an attack is on twice at the same time; the message names the attack
                and the field.
        """
        return cls._of([_from_argument(text) for text in texts], "attacks")

    @classmethod
    def _of(cls, attacks: list[Attack], where: str) -> Self:
        if len(attacks) > MAX_ATTACKS:
            raise ConfigurationError(
                f"{where}: it has {len(attacks)} attacks, the limit is {MAX_ATTACKS}",
                remedy="leave some out",
            )
        for first, second in itertools.combinations(attacks, 2):
            if _collide(first, second):
                raise ConfigurationError(
                    f"{where}: {first.name} is on twice from {max(first.from_s, second.from_s):g} s",
                    remedy="give it once with the strength that you want, or at times that do not overlap",
                )
        return cls(tuple(attacks))

    def check(self, setup: OpticalSetup) -> None:
        """Refuse a link that an attack does not fit, and attacks that do not work together, before one begins.

        Raises:
            ConfigurationError: One does not fit; the message names it.
        """
        check_order(self.attacks)
        for attack in self.attacks:
            attack.change_setup(setup, 0.0)

    def active(self, now_s: float) -> tuple[Attack, ...]:
        """Return the attacks that are on."""
        return tuple(attack for attack in self.attacks if attack.is_on(now_s))

    def next_change_s(self, now_s: float) -> float | None:
        """Return when an attack begins or ends next, after now; None: nothing changes any more."""
        times = [time_s for a in self.attacks for time_s in (a.from_s, a.until_s) if time_s is not None]
        return min((time_s for time_s in times if time_s > now_s), default=None)


def attack_from(fields: Mapping[str, Any], where: str) -> Attack:
    """Make an attack from its name and fields.

    Args:
        fields: `name` and what the attack has.
        where: What the error message begins with.

    Raises:
        ConfigurationError: There is no such attack or field, or a value is out of range.
    """
    rest = dict(fields)
    name = rest.pop("name", None)
    kind = ATTACKS.get(name) if isinstance(name, str) else None
    if kind is None:
        meant = did_you_mean(name, ATTACKS)
        raise ConfigurationError(f"{where}: name {name!r} is no attack", remedy=f"{meant}one of: {', '.join(ATTACKS)}")
    try:
        attack = kind.model_validate(rest)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        unknown = first["type"] == "extra_forbidden"
        meant = did_you_mean(field, kind.model_fields) if unknown else ""
        said = "there is no such field" if unknown else f"{first['msg']}, not {first['input']!r}"
        raise ConfigurationError(
            f"{where} ({name}): {field}: {said}",
            remedy=f"{meant}fields: {', '.join(kind.model_fields)}",
        ) from error
    if attack.until_s is not None and attack.until_s <= attack.from_s:
        raise ConfigurationError(
            f"{where} ({name}): until_s: it ends at {attack.until_s} s, before it begins at {attack.from_s} s",
            remedy="give until_s above from_s, or leave it out",
        )
    return attack


def attack_help() -> dict[str, str]:
    """Return what each attack does and its fields with their defaults, by name: the help of a command."""
    return {name: f"{_summary(kind)} [{_fields(kind)}]" for name, kind in ATTACKS.items()}


def _collide(first: Attack, second: Attack) -> bool:
    """Tell whether two entries are the same attack, on the same detector if it has one, at overlapping times."""
    if type(first) is not type(second) or first.model_dump().get("detector") != second.model_dump().get("detector"):
        return False
    return first.is_on(second.from_s) or second.is_on(first.from_s)


def _summary(kind: type[Attack]) -> str:
    return (kind.__doc__ or "").split("\n", 1)[0]


def _fields(kind: type[Attack]) -> str:
    own = {name: field for name, field in kind.model_fields.items() if name not in Attack.model_fields}
    return ", ".join([f"{name}={field.default}" for name, field in own.items()] + ["from_s=0", "until_s"])


def _from_argument(text: str) -> Attack:
    name, colon, rest = text.partition(":")
    fields: dict[str, str | int] = {}
    for part in rest.split(",") if colon else []:
        field, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not re.fullmatch(r"[a-z_]{1,64}", field) or field in fields or field == "name":
            raise ConfigurationError(
                f"attack {text[:200]!r}: {part[:100]!r} is no field, or twice",
                remedy="write NAME:FIELD=VALUE,FIELD=VALUE",
            )
        fields[field] = int(value) if re.fullmatch(r"-?[0-9]{1,18}", value) else value
    return attack_from({"name": name.strip(), **fields}, f"attack {text[:200]!r}")
