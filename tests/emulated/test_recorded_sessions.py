"""Sessions with every kind of transport, recorded and played: as a test of the driver and as a unit."""

import json
from contextlib import suppress

import pytest

from qkdhw import open_unit
from qkdhw.bench import dialogue_test, record_unit, replay_calls
from qkdhw.errors import ConfigurationError, QkdhwError, TransportClosedError, TransportTimeoutError, WireFormatError
from qkdhw.transport.session_file import read_session
from qkdhw_emulators.in_process import make_unit
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.world import World

CASES = [
    ("agilent-8156a", "emu"), ("agilent-8156a", "tcp"), ("agilent-8156a", "pty"), ("agilent-8156a", "hislip"),
    ("agilent-8156a", "vxi11"), ("thorlabs-itc4000", "usbtmc"), ("oz-epc400", "rfc2217"), ("idq-id900", "zmq"),
    ("cqt-fx2", "usb"), ("idq-quantis", "usb"), ("sfifteen-tdc1", "pty"), ("generic-tx", "tcp"), ("thorlabs-mpc320", "pty"),
    ("single-quantum-websq", "tcp"), ("srs-dg645", "tcp"),
]  # fmt: skip


def recorded(name, on, path, work):
    world = World(seed=1)
    with (
        serve_unit(make_unit(name, world), world, transport=on) as served,
        record_unit(name, served.url, path, timeout_s=1.0) as unit,
    ):
        work(unit, served)


def look_around(unit, _served):
    unit.identify()
    unit.snapshot()
    unit.read_status()
    with suppress(ConfigurationError):
        unit.configure({"no_such_setting": 1})


@pytest.mark.parametrize(("name", "on"), CASES)
def test_a_session_plays_with_the_same_bytes_and_results(tmp_path, name, on):
    file = tmp_path / "one.session"
    recorded(name, on, file, look_around)
    assert replay_calls(file) == 4
    header, lines = read_session(file)
    assert header["driver"] == name
    assert any("in" in line or "in64" in line for line in lines)


def test_a_stream_of_events_plays_and_a_changed_event_is_noticed(tmp_path):
    file = tmp_path / "tagger.session"

    def work(unit, _served):
        unit.start()
        for _ in range(3):
            unit.read_block(400, timeout_s=0.5)
        unit.stop()

    recorded("sfifteen-tdc1", "pty", file, work)
    assert replay_calls(file) == 5
    text = file.read_text()
    number = next(n for n, line in enumerate(text.splitlines()) if '"result": {"time_ticks"' in line)
    lines = text.splitlines()
    call = json.loads(lines[number])
    call["result"]["time_ticks"]["sha256"] = "0" * 64
    lines[number] = json.dumps(call)
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(ConfigurationError, match="read_block"):
        replay_calls(file)


def test_a_session_with_a_lost_answer_and_a_lost_connection_plays_too(tmp_path):
    file = tmp_path / "faulty.session"

    def work(unit, served):
        for fault in ("drop", "disconnect", "garble"):
            served.faults.parse(f"{fault}:count=1")
            with suppress(QkdhwError):
                unit.read_setting("attenuation_db")
        served.faults.parse("drop:count=2")
        with pytest.raises(TransportTimeoutError):
            unit.read_setting("wavelength_nm")
        unit.read_setting("wavelength_nm")

    recorded("agilent-8156a", "tcp", file, work)
    assert replay_calls(file) == 5


def test_a_recording_is_a_unit_until_it_is_asked_something_else(tmp_path):
    file = tmp_path / "unit.session"
    recorded("agilent-8156a", "tcp", file, lambda unit, _: unit.read_setting("attenuation_db"))
    with open_unit("agilent-8156a", f"replay://{file}") as unit:
        assert unit.attenuation_db == 0.0
        with pytest.raises((WireFormatError, TransportClosedError), match=r"line \d+|is over"):
            unit.read_setting("wavelength_nm")


def test_a_driver_that_sends_something_else_is_told_where(tmp_path):
    file = tmp_path / "unit.session"
    recorded("agilent-8156a", "tcp", file, lambda unit, _: unit.configure({"attenuation_db": 1.5}))
    file.write_text(file.read_text().replace('{"attenuation_db": 1.5}]', '{"attenuation_db": 2.5}]'))
    with pytest.raises(WireFormatError, match=r"line \d+.*2\.500.*1\.500"):
        replay_calls(file)


def test_the_test_that_is_written_runs(tmp_path):
    file = tmp_path / "the session.session"
    recorded("agilent-8156a", "tcp", file, look_around)
    test = tmp_path / "test_it.py"
    test.write_text(dialogue_test(file))
    assert pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:randomly", str(test)]) == 0


@pytest.mark.parametrize("text", ["", "{}", "[1]", "not json", '{"qkdhw_session": 2}'])
def test_what_is_no_session_file(tmp_path, text):
    file = tmp_path / "bad.session"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=r"bad\.session"):
        open_unit("agilent-8156a", f"replay://{file}")


def test_an_old_session_file_is_not_written_over(tmp_path):
    file = tmp_path / "old.session"
    file.write_text("precious")
    with pytest.raises(ConfigurationError, match="old"), record_unit("agilent-8156a", "emu://agilent-8156a", file):
        pass
    assert file.read_text() == "precious"


def test_random_bytes_are_not_in_the_calls(tmp_path):
    file = tmp_path / "random.session"
    recorded("idq-quantis", "usb", file, lambda unit, _: unit.read_random(64))
    _, lines = read_session(file)
    (call,) = [line for line in lines if line.get("call") == "read_random"]
    assert call["result"] == {"secret_bytes": 64}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"qkdhw_session": 1}\n{"t": 0}\n{"t": 1, }\n', "line 3, character"),
        ('{"qkdhw_session": 1}\n' + "[" * 100_000, "line 2: maximum recursion"),
        ('{"qkdhw_session": 1}\n' + "9" * 5000, "line 2: Exceeds"),
        ("", "no session file of version"),
        ("[1]\n", "no session file of version"),
    ],
)
def test_what_is_no_session_file_is_told_with_its_line(tmp_path, text, said):
    file = tmp_path / "x.session"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        read_session(file)


WRONG_LINES = (
    '5', 'null', '"x"', '[1]', '{}', '{"t": 0}', '{"in": "a"}', '{"t": "0", "in": "a"}', '{"t": 0, "in": 5}',
    '{"t": 0, "in": "\u20ac"}', '{"t": 0, "in64": "%"}', '{"t": 0, "in64": 5}', '{"t": 0, "out64": "a"}',
    '{"t": 0, "in": "a", "out": "a"}', '{"t": 0, "idle": 1}', '{"t": 0, "lost": null}', '{"t": 0, "nonce": "7"}',
    '{"t": 0, "dial": 1}', '{"t": 0, "control": 5, "in": ""}', '{"t": 0, "control": [1, 2, 3, 4], "in": ""}',
    '{"t": 0, "control": [1, 2, 3, 4, "5"], "in": ""}', '{"t": 0, "control": [1, 2, 3, 4, 5]}', '{"t": 0, "call": "identify"}',
    '{"t": 0, "call": 5, "arguments": [], "options": {}, "result": 1}',
    '{"t": 0, "call": "identify", "arguments": {}, "options": {}, "result": 1}',
    '{"t": 0, "call": "identify", "arguments": [], "options": {}}',
)  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_LINES)
def test_a_line_that_is_none_of_a_session_is_told_by_its_number(tmp_path, wrong):
    file = tmp_path / "x.session"
    recorded("agilent-8156a", "emu", file, look_around)
    lines = file.read_text().splitlines()
    for at in (1, 4, len(lines)):
        file.write_text("\n".join([*lines[:at], wrong, *lines[at:]]) + "\n")
        for use in (
            read_session,
            replay_calls,
            dialogue_test,
            lambda path: open_unit("agilent-8156a", f"replay://{path}"),
        ):
            with pytest.raises(ConfigurationError, match=f"line {at + 1} is none of a session"):
                use(file)


@pytest.mark.parametrize(
    ("key", "wrong"),
    [("driver", 5), ("driver", "nothing-such"), ("timeout_s", "5"), ("timeout_s", 0), ("options", []), ("options", {"x": 1}),
     ("begun", None)],
)  # fmt: skip
def test_a_header_that_opens_no_unit_is_a_typed_error(tmp_path, key, wrong):
    file = tmp_path / "x.session"
    recorded("agilent-8156a", "emu", file, look_around)
    header, *lines = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps(json.loads(header) | {key: wrong}), *lines]) + "\n")
    with pytest.raises(ConfigurationError):
        replay_calls(file)


@pytest.mark.parametrize(
    "call",
    [
        {"call": "identify", "arguments": [1]},
        {"call": "read_setting", "arguments": []},
        {"call": "identify", "options": {"x": 1}},
    ],
)
def test_a_call_that_the_driver_does_not_take_is_a_typed_error(tmp_path, call):
    file = tmp_path / "x.session"
    recorded("agilent-8156a", "emu", file, look_around)
    line = {"t": 0, "arguments": [], "options": {}, "result": None} | call
    header, *lines = file.read_text().splitlines()
    file.write_text("\n".join([header, json.dumps(line), *lines]) + "\n")
    with pytest.raises(ConfigurationError, match=call["call"]):
        replay_calls(file)


def test_nothing_of_a_session_file_becomes_code_or_is_opened(tmp_path):
    file = tmp_path / "evil.session"
    recorded("agilent-8156a", "tcp", file, look_around)
    header, *lines = file.read_text().splitlines()
    marker = tmp_path / "PWNED"
    evil = json.loads(header)
    evil["begun"] = f'x"""\nopen({str(marker)!r}, "w")\n"""'
    file.write_text("\n".join([json.dumps(evil), *lines]) + "\n")
    with suppress(ConfigurationError):
        (tmp_path / "test_evil.py").write_text(dialogue_test(file))
        pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:randomly", str(tmp_path / "test_evil.py")])
    assert not marker.exists()
    for change in ({"options": {"data_link_url": "tcp://127.0.0.1:1"}},):
        file.write_text("\n".join([json.dumps(json.loads(header) | change), *lines]) + "\n")
        with pytest.raises(ConfigurationError, match="data_link_url"):
            replay_calls(file)


@pytest.mark.parametrize("name", ["__class__", "_recover", "model", "no_such"])
def test_only_public_methods_are_called(tmp_path, name):
    file = tmp_path / "attribute.session"
    recorded("agilent-8156a", "tcp", file, lambda unit, _: unit.identify())
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        if "call" in line:
            line["call"] = name
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    with pytest.raises(ConfigurationError, match="no method"):
        replay_calls(file)


def test_a_pattern_is_not_quoted_when_another_is_sent(tmp_path):
    file = tmp_path / "pattern.session"
    recorded("agilent-8156a", "tcp", file, lambda unit, _: unit.identify())
    file.write_text(file.read_text().replace('"out": "*IDN?', '"out": "POLSEQ 0123321001233210', 1))
    with pytest.raises(WireFormatError) as raised:
        replay_calls(file)
    assert "0123321001233210" not in str(raised.value)
    assert "POLSEQ" in str(raised.value)
