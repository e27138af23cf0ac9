"""Links that can be meant and links that cannot: what is refused, in which words, and what a receiver may leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.expected import expected_counts, expected_gain_and_qber
from qkdhw_emulators.optics.link_tables import build_tables
from qkdhw_emulators.optics.presets import dump_setup, load_setup
from qkdhw_emulators.optics.schedule import Schedule
from qkdhw_emulators.optics.setup import OpticalSetup, Source
from qkdhw_emulators.optics.simulation import LinkSimulation
from qkdhw_emulators.simulate.changes import changed_setup


def changed(preset: str, *changes: str) -> OpticalSetup:
    return changed_setup(load_setup(preset), list(changes))


KEY_ONLY = "receiver.layout=['key0', 'key1']"
BOTH_BASES = "receiver.layout=['key0', 'key1', 'test0', 'test1']"


# --- receivers that do not measure all that is sent ------------------------------------------------------------------
@pytest.mark.parametrize(
    ("preset", "changes", "bases"),
    [
        ("rusca-2018", ("source.states=6", BOTH_BASES), 2),
        ("rusca-2018", ("source.states=6", BOTH_BASES, "receiver.basis_choice=active"), 2),
        ("geneva-2018", ("source.states=6",), 2),
        ("lim-2014", (KEY_ONLY,), 1),
        ("lim-2014", (KEY_ONLY, "receiver.basis_choice=passive"), 1),
        ("lim-2014", (KEY_ONLY, "source.states=6"), 1),
    ],
)
def test_pulses_of_a_basis_without_detectors_are_thrown_away(preset: str, changes: tuple[str, ...], bases: int) -> None:
    setup = changed(preset, *changes)
    found, clicks = expected_gain_and_qber(setup), expected_counts(setup, 1e9).clicks
    sent = setup.source.bases
    assert clicks.shape[1] == clicks.shape[3] == sent
    names = ("key", "test", "third")
    assert all(found[f"gain_{basis}_0"] > 0 for basis in names[:bases])
    assert all(found[f"gain_{basis}_0"] == found[f"qber_{basis}"] == 0 for basis in names[bases:sent])
    assert clicks[..., bases:, :].sum() == 0
    tables = build_tables(setup)
    if setup.receiver.basis_choice == "active":
        assert len(tables.bob_thresholds) == sent
        assert tables.bob_thresholds[bases - 1 :].tolist() == [65536] * (sent - bases + 1)
    with LinkSimulation(setup, seed=1, cell_pulses=1 << 20) as link:
        n, pulses = np.zeros(len(setup.receiver.detectors)), 0
        while n.min() < 100 and pulses < 5e7:
            cell = link.next_cell()
            n += np.bincount(cell.bob.channel, minlength=len(n))
            pulses += cell.n_pulses
    expected = expected_counts(setup, pulses)
    deviation = np.sqrt(expected.detector_clicks * np.maximum(1.0, expected.detector_fano))
    assert np.all(np.abs(n - expected.detector_clicks) < 5 * deviation)


def test_all_light_goes_to_a_lone_basis() -> None:
    half = changed("lim-2014", KEY_ONLY, "receiver.basis_choice=passive", "receiver.key_basis_probability=0.5")
    full = changed("lim-2014", KEY_ONLY, "receiver.basis_choice=passive", "receiver.key_basis_probability=1")
    assert expected_gain_and_qber(half) == expected_gain_and_qber(full)


@pytest.mark.parametrize(
    "changes",
    [
        ("receiver.detectors=[{}]",),
        ("receiver.layout=['any0', 'any0']",),
        ("receiver.layout=['test0', 'test1']",),
        ("receiver.detectors=[{}, {}, {}, {}]", "receiver.layout=['key0', 'key0', 'test0', 'test1']"),
    ],
)
def test_a_receiver_that_tells_no_bits_of_the_key_is_refused(changes: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match="tells no bits of the key basis; give detectors for both"):
        changed("lim-2014", *changes)


def test_the_senders_receiver_must_tell_them_too() -> None:
    with pytest.raises(
        ConfigurationError, match=r"sender_receiver\.layout: its detectors are key0, key0, test0, test1"
    ):
        changed("sfifteen-bbm92", "sender_receiver.layout=['key0', 'key0', 'test0', 'test1']")


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("geneva-2018", ("receiver.layout=['key', 'test0']", "receiver.detectors=[{}, {}]")),  # one monitoring port
        ("geneva-2018", ("receiver.layout=['key']", "receiver.detectors=[{}]")),
        ("lim-2014", ("receiver.layout=['any0', 'key1', 'any1']", "receiver.detectors=[{}, {}, {}]")),
    ],
)
def test_a_monitor_of_one_port_or_none_is_not_refused(preset: str, changes: tuple[str, ...]) -> None:
    setup = changed(preset, *changes)
    assert expected_gain_and_qber(setup)["gain_key_0"] > 0
    LinkSimulation(setup, seed=1).close()


# --- light and bins that are not there ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            ("source.kind=single-photon", "source.intensities=[]"),
            "single_photon_probability is 0, which means no light",
        ),
        (("source.encoding=time-bin",), "receiver.bin_separation_ps is 0, and time-bin encoding needs two bins"),
        (("source.encoding=time-bin", "receiver.bin_separation_ps=10000"), "bin_separation_ps is 10000: both bins"),
    ],
)
def test_a_link_that_cannot_work_is_refused_before_it_runs(changes: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        LinkSimulation(changed("lim-2014", *changes), seed=1)
    assert said in str(caught.value)
    assert caught.value.remedy.startswith("give it ")


def test_a_file_with_time_bins_that_no_receiver_tells_apart_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "link.toml"
    text = dump_setup(load_setup("rusca-2018"))
    file.write_text(text.replace("[source]", '[source]\nencoding = "time-bin"'))
    with pytest.raises(ConfigurationError, match=r"link\.toml: receiver\.bin_separation_ps is 0"):
        load_setup(file)


def test_two_photons_alone_are_light() -> None:
    setup = changed(
        "lim-2014", "source.kind=single-photon", "source.intensities=[]", "source.two_photon_probability=0.1"
    )
    LinkSimulation(setup, seed=1).close()


def test_only_a_source_of_pairs_has_a_tagger_at_the_sender() -> None:
    with pytest.raises(ConfigurationError, match="only a source of pairs has one"):
        changed("lim-2014", "sender_tagger={ clock_ppm = 1 }")


def test_the_rule_of_intensities_is_where_one_looks_for_it() -> None:
    assert "one to four, strictly falling" in " ".join((Source.__doc__ or "").split())


# --- arguments of a simulation --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "said", "remedy"),
    [
        ({"setup": "lim-2014"}, "setup is 'lim-2014', not an OpticalSetup", "load_setup"),
        ({"setup": None}, "setup is None, not an OpticalSetup", "load_setup"),
        ({"seed": "a"}, "seed is 'a'", "a whole number from 0"),
        ({"seed": 1.5}, "seed is 1.5", "a whole number from 0"),
        ({"seed": -1}, "seed is -1", "a whole number from 0"),
        ({"run": None}, "run is None", "a whole number from 0"),
        ({"threads": 65}, "threads is 65", "a whole number from 1 to 64"),
        ({"cell_pulses": "many"}, "cell_pulses is 'many'", "a whole number from 1 to 2147483647"),
        ({"cell_pulses": 0}, "cell_pulses is 0", "a whole number from 1 to 2147483647"),
        ({"schedule": ["fibre-cut"]}, "schedule is ['fibre-cut'], not a Schedule", "Schedule.from_arguments"),
    ],
)
def test_a_wrong_argument_is_refused_in_words(arguments: dict[str, Any], said: str, remedy: str) -> None:
    setup = arguments.pop("setup", load_setup("lim-2014"))
    with pytest.raises(ConfigurationError) as caught:
        LinkSimulation(setup, **({"seed": 1} | arguments))
    assert said in str(caught.value)
    assert remedy in caught.value.remedy


def test_a_seed_may_be_a_number_of_numpy() -> None:
    LinkSimulation(load_setup("lim-2014"), seed=np.int64(3)).close()  # type: ignore[arg-type]


# --- words of --set and of attacks ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("receiver.misalignment=0.02", "receiver.misalignment: this must be a list, such as [0.02, 0.02, 0.02]"),
        ("receiver.misalignment=small", "receiver.misalignment: this must be a list, such as [0.0, 0.0, 0.0]"),
        ("tagger.skew_ps=5", "tagger.skew_ps: this must be a list, such as [5]"),
        ("source.intensities=0.5", "such as [{ mean_photon_number = .., probability = .. }]"),
        ("receiver.gate=500", "receiver.gate: this must be a table, such as { width_ps = .. }"),
        ("receiver.detectors.0=5", "receiver.detectors.0: this must be a table, such as { efficiency = .. }"),
        ("receiver.gate={ widt = 1 }", "receiver.gate.widt: there is no such field; did you mean width_ps?"),
        ("tagger.clock_ppm.now=1", "there is no 'now', for tagger.clock_ppm is one value and no table"),
        ("tagger.skew_ps.x=1", "there is no 'x'"),
        ("sender_tagger.clock=1", "there is no 'clock'"),
        ("sender_receiver.loss_db=1", "sender_receiver.detectors: this field is missing"),
    ],
)
def test_a_change_that_does_not_fit_is_refused_with_how_to_write_it(change: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        changed("lim-2014", change)
    assert said in str(caught.value)
    assert str(caught.value).startswith("--set ")
    assert caught.value.remedy


def test_a_table_that_is_not_there_is_begun() -> None:
    setup = load_setup("sfifteen-bbm92").model_copy(update={"sender_tagger": None})
    begun = changed_setup(setup, ["sender_tagger.clock_ppm=1", "sender_tagger.tick_fs=5"])
    assert begun.sender_tagger is not None
    assert (begun.sender_tagger.clock_ppm, begun.sender_tagger.tick_fs) == (1, 5)
    law = changed("rusca-2018", "receiver.detectors.afterpulse_power_law.probability=0.01").receiver.detectors[3]
    assert law.afterpulse_power_law is not None
    assert law.afterpulse_power_law.probability == 0.01


def test_an_attack_with_an_unknown_field_is_answered_with_its_fields() -> None:
    with pytest.raises(ConfigurationError, match=r"\(intercept-resend\): frac: there is no such field\n") as caught:
        Schedule.from_arguments(["intercept-resend:frac=1"])
    assert caught.value.remedy == "did you mean fraction? fields: from_s, until_s, fraction, bases, error"
    with pytest.raises(ConfigurationError, match="fraction: Input should be less than or equal to 1, not 2"):
        Schedule.from_arguments(["intercept-resend:fraction=2"])


# --- what cannot be simulated ------------------------------------------------------------------------------------------
LAW = "receiver.detectors.afterpulse_power_law={{probability=0.5,exponent=1,from_ns={},to_ns={}}}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("receiver.detectors.afterpulses=[{probability=0.91,tau_ns=30}]", "0.91 children of a click, at most 0.9"),
        ("receiver.detectors.afterpulses=[{probability=0.1,tau_ns=1e-300}]", "tau_ns"),
        (LAW.format(20, 5), "to_ns: 5 is not above from_ns, 20"),
        (LAW.format(5, 5), "to_ns: 5 is not above from_ns, 5"),
        (LAW.format(1e-300, 5), "from_ns"),
        ("receiver.detectors.%s.efficiency=0.5" % ("9" * 5000), "there is no '999"),
    ],
)
def test_afterpulses_without_end_and_numbers_without_end_are_refused(change: str, reason: str) -> None:
    without = "receiver.detectors.afterpulses=[]"
    with pytest.raises(ConfigurationError, match=reason):
        changed("toshiba-t12-2013", without, change)
