"""emu:// addresses: what is wrong with one is said, and a link to a unit that does not have something says so."""

import pytest

from qkdhw.errors import ConfigurationError, NotSupportedError, TransportClosedError
from qkdhw.transport import open_transport
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.units.agilent_attenuator import EmulatedAgilent8156A
from qkdhw_emulators.units.cqt_fx2 import EmulatedCqtFx2


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("emu://", "not understood"),
        ("emu://agilent-8156a/shelf", "not understood"),
        ("emu://agilent-8156a#1", "not understood"),
        ("emu://nothing-such", "no emulator is called 'nothing-such'"),
        ("emu://#nobody", "no emulated unit is served"),
        ("emu://agilent-8156a?seed=one", "not understood"),
        ("emu://agilent-8156a?seed=-1", "seed is -1"),
        ("emu://agilent-8156a?pace=0", "pace is 0"),
        ("emu://agilent-8156a?pace=fast", "not understood"),
        ("emu://agilent-8156a?colour=red", "unknown option 'colour'"),
        ("emu://agilent-8156a?fault=nope", "no fault is called 'nope'"),
        ("emu://agilent-8156a?fault=drop:rate=2", "fault drop"),
        ("emu://single-quantum-websq?seed=77&port=counts", "no emulated unit is served"),
    ],
)
def test_an_address_that_leads_nowhere_says_why(url, said):
    with pytest.raises(ConfigurationError, match=said) as raised:
        open_transport(url)
    assert raised.value.remedy


def test_a_served_unit_has_its_own_options_and_ports():
    with serve_unit(EmulatedAgilent8156A(), transport="emu") as served:
        name = served.url.removeprefix("emu://")
        for url, said in (
            (f"emu://?seed=2{name}", "no emulated unit"),
            (f"emu://?port=counts{name}", "no port 'counts'"),
        ):
            with pytest.raises(ConfigurationError, match=said):
                open_transport(url)
    with pytest.raises(ConfigurationError, match="no emulated unit is served"):
        open_transport(served.url)


def test_a_unit_without_usb_has_no_control_transfers_and_pipes():
    with open_transport("emu://agilent-8156a") as link:
        for transfer in (
            lambda: link.control_in(0x80, 6, 0x100, 0, 18),
            lambda: link.control_out(0x40, 1, 0, 0),
            lambda: link.read_pipe(0x82, 64),
        ):
            with pytest.raises(NotSupportedError):
                transfer()


def test_a_link_that_the_unit_hung_up_is_closed_for_everything():
    with (
        serve_unit(EmulatedCqtFx2(), transport="emu", faults=["disconnect:count=1"]) as served,
        open_transport(served.url) as link,
    ):
        link.write(b"\x03\x10\x08")
        with pytest.raises(TransportClosedError):
            link.read_exactly(2, timeout_s=1.0)
        for use in (
            lambda: link.write(b"\x03\x10\x08"),
            lambda: link.control_in(0x80, 6, 0x100, 0, 18),
            lambda: link.read_pipe(0x82, 64),
            lambda: link.read_exactly(1),
        ):
            with pytest.raises(TransportClosedError):
                use()
        link.reconnect(timeout_s=1.0)
        link.write(b"\x03\x10\x08")
        assert link.read_exactly(1) == b"\0"


def test_a_broken_emulator_of_somebody_else_is_named(tmp_path, monkeypatch):
    info = tmp_path / "acme_gone-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-gone\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[qkdhw.emulators]\nacme-gone = acme_gone:Emulated\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match="emulator 'acme-gone' cannot be imported"):
        open_transport("emu://acme-gone")
