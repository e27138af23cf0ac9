"""WebSQ dialogues: requests byte for byte as Single Quantum's own WebSQControl.py sends them."""

import json
import socket
import threading

import pytest
from dialogue import expect_dialogue

from qkdhw.drivers.single_quantum_websq import SingleQuantumWebSq, counts_url_of
from qkdhw.errors import CommandRefusedError, TransportTimeoutError, UnitError, WireFormatError
from qkdhw.transport import open_transport
from qkdhw_emulators.units.single_quantum_websq import EmulatedSingleQuantumWebSq

ASK = b'{"request": "labelProps", "value": "None"}'


def labels(*, n=2, period=100, bias=(12.0, 8.0), trigger=(23.0, 24.0), enabled="false"):
    """All labels; the first two run together, one that nobody knows between them."""
    return (
        f'{{"label":"NumberOfDetectors","value":{{"value":{n}}}}}'
        f'{{"label":"InptMeasurementPeriod","value":{{"value":{period},"bounds":[10,10000],"units":"ms"}}}}\x17'
        f'{{"label":"BiasCurrent","value":{{"value":{list(bias)},"units":"uA"}}}}\x17'
        f'{{"label":"Colour","value":"red"}}\x17'
        f'{{"label":"TriggerLevel","value":{{"value":{list(trigger)},"units":"mV"}}}}\x17'
        f'{{"label":"DetectorEnable","value":{{"value":{enabled}}}}}\x17'
    ).encode()


OPENING = [(ASK, labels()), (ASK, labels())]


def opened(url, **options):
    return SingleQuantumWebSq(open_transport(url), timeout_s=0.5, **options)


def test_settings_of_all_detectors_are_sent_together():
    new = labels(bias=(12.0, 9.5))
    turns = [
        *OPENING,
        (ASK, labels()),
        (
            b'{"command": "SetAllBiasCurrents", "label": "BiasCurrent", "value": [12.0, 9.5]}',
            b'{"label":"BiasCurrent","value":[12.0,9.5]}\x17',
        ),
        (ASK, new),
        (ASK, new),
        (
            b'{"command": "SetAllTriggerLevels", "label": "TriggerLevel", "value": [-20.0, 24.0]}',
            b'{"label":"TriggerLevel","value":[-20.0,24.0]}\x17',
        ),
        (ASK, labels(trigger=(-20.0, 24.0))),
    ]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        assert list(unit.bias_current_ua) == [1, 2]
        assert unit.configure({"bias_current_ua": {2: 9.5}}) == {"bias_current_ua": {2: 9.5}}
        assert unit.configure({"trigger_level_mv": {1: -20.0}}) == {"trigger_level_mv": {1: -20.0}}


def test_period_and_enabling():
    turns = [
        *OPENING,
        (
            b'{"command": "SetMeasurementPeriod", "label": "InptMeasurementPeriod", "value": 10}',
            b'{"label":"BiasVoltage","value":[1.0,2.0]}{"label":"InptMeasurementPeriod","value":10}\x17',
        ),
        (ASK, labels(period=10)),
        (
            b'{"command": "DetectorEnable", "label": "DetectorEnable", "value": true}',
            b'{"label":"DetectorEnable","value":true}\x17',
        ),
        (ASK, labels(period=10, enabled="true")),
        (ASK, labels(period=10, enabled="true")),
    ]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        unit.measurement_period_ms = 10
        unit.enable_detectors()
        assert unit.detectors_enabled is True


def test_voltages_and_temperature():
    temperatures = b'{"label":"temperature_long_memory","value":{"x":["a","b"],"T":[2.6,2.55],"T2":[40,41]}}\x17'
    turns = [
        *OPENING,
        (b'{"request": "BiasVoltage"}', b'{"label":"BiasVoltage","value":{"value":[0.6,812.5],"units":"mV"}}\x17'),
        (b'{"request": "TemperatureHistory"}', temperatures),
    ]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        assert unit.bias_voltage_mv[2] == 812.5
        assert unit.temperature_k == 2.55


def test_an_error_label_refuses_and_is_an_alarm_until_it_is_cleared():
    turns = [
        *OPENING,
        (
            b'{"command": "SetMeasurementPeriod", "label": "InptMeasurementPeriod", "value": 60000}',
            b'{"label":"ErrorMessage","value":"too long"}\x17',
        ),
    ]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        with pytest.raises(CommandRefusedError, match="too long"):
            unit.measurement_period_ms = 60000
        assert unit._alarms == ["ErrorMessage: 'too long'"]


def test_an_error_that_comes_unasked_spoils_no_reading():
    broken = b'{"label":"CryoError","value":"compressor stopped"}\x17' + labels()
    volts = b'{"label":"BiasVoltage","value":[1,2]}\x17'
    status = [
        (b'{"request": "BiasVoltage"}', volts),
        (b'{"request": "BiasVoltage"}', volts),
        (b'{"request": "TemperatureHistory"}', b'{"label":"temperature_long_memory","value":{"T":[2.5]}}\x17'),
        (ASK, labels()),
    ]
    with expect_dialogue("tcp", [*OPENING, (ASK, broken), *status, *status]) as url, opened(url) as unit:
        assert unit.measurement_period_ms == 100
        assert unit.read_status().alarms == ("CryoError: 'compressor stopped'",)
        unit.clear_alarms()
        assert unit.read_status().alarms == ()


@pytest.mark.parametrize(
    "answer",
    [
        labels(n=0),
        labels(n="1e400"),
        labels(n=3),
        labels(n="true, 2"),
        labels(bias=(1.0,)),
        labels(enabled='"yes"'),
        labels(enabled="[]"),
        labels(period="NaN"),
        labels(period="null"),
        labels()[:60] + b"\x17",
        b"[1,2]\x17",
        b"[" * 100_000 + b"\x17",
        b"\xff\xfe\x17",
        b'{"label":"Greeting","value":"Hello"}\x17',
    ],
)
def test_labels_that_are_none(answer):
    with (
        expect_dialogue("tcp", [(ASK, answer)]) as url,
        open_transport(url) as link,
        pytest.raises(WireFormatError),
    ):
        SingleQuantumWebSq(link, timeout_s=0.5)


def test_silence_is_a_timeout():
    with (
        expect_dialogue("tcp", [(ASK, b"")]) as url,
        open_transport(url) as link,
        pytest.raises(TransportTimeoutError),
    ):
        SingleQuantumWebSq(link, timeout_s=0.2)


def test_a_setting_that_nobody_confirms():
    turns = [*OPENING, (b'{"command": "DetectorEnable", "label": "DetectorEnable", "value": true}', b"")]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit, pytest.raises(TransportTimeoutError):
        unit.enable_detectors()


class CountsServer:
    """Sends its texts, one to each client that connects."""

    def __init__(self, *texts):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(3.0)
        self.url = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._texts = texts
        self._clients = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        for text in (b"", *self._texts):  # the first connection is only opened
            client, _ = self._listener.accept()
            self._clients.append(client)
            client.sendall(text)

    def close(self):
        for each in (*self._clients, self._listener):
            each.close()


@pytest.fixture
def counts_server(request):
    server = CountsServer(*request.param)
    yield server
    server.close()


GOOD = b"1700000000.100,5,6\n1700000000.100,5,6\n1700000000.200,7,8\n"


@pytest.mark.parametrize("counts_server", [(GOOD,), (b"1700000000.1,5\n", GOOD)], indirect=True)
def test_counts_are_of_a_period_that_began_after_the_call(counts_server):
    turns = [*OPENING, (ASK, labels())]
    with expect_dialogue("tcp", turns) as url, opened(url, counts_url=counts_server.url) as unit:
        assert unit.read_count_rates_hz() == (70.0, 80.0)


BAD_LINES = (b"1700000000,5\n", b"x,5,6\n", b"1700000000,5,-6\n", b"1700000000,5,6.5\n", b"nan,5,6\n")


@pytest.mark.parametrize("counts_server", [(line, line) for line in BAD_LINES], indirect=True)
def test_counts_that_are_none(counts_server):
    turns = [*OPENING, (ASK, labels())]
    with (
        expect_dialogue("tcp", turns) as url,
        opened(url, counts_url=counts_server.url) as unit,
        pytest.raises(UnitError),
    ):
        unit.read_counts()


def test_where_the_counts_port_is():
    assert counts_url_of("tcp://10.0.0.7:12000") == "tcp://10.0.0.7:12345"
    assert counts_url_of("tcp://[::1]:12000") == "tcp://[::1]:12345"
    assert counts_url_of("emu://#WebSq-1") == "emu://?port=counts#WebSq-1"
    assert counts_url_of("emu://single-quantum-websq?seed=3") == "emu://single-quantum-websq?seed=3&port=counts"


def told_by(unit, *requests):
    """The messages that the emulated unit answers, in the vendor's own framing."""
    text = unit.receive("".join(requests).encode()).decode().replace("}{", "}\x17{")
    return [json.loads(part) for part in text.split("\x17") if part]


def test_the_emulated_unit_answers_what_the_vendor_sends():
    unit = EmulatedSingleQuantumWebSq()
    props = {m["label"]: m["value"] for m in told_by(unit, '{"request": "labelProps", "value": "None"}')}
    assert props["NumberOfDetectors"]["value"] == 4
    assert props["InptMeasurementPeriod"]["value"] == 100
    assert props["DetectorEnable"]["value"] is False
    told = told_by(
        unit,
        '{"command": "SetMeasurementPeriod", "label": "InptMeasurementPeriod", "value": 10}',
        '{"command": "DetectorEnable", "label": "DetectorEnable", "value": true}',
        '{"command": "SetAllBiasCurrents", "label": "BiasCurrent", "value": [12.0, 8.0, 3.0, 8.0]}',
        '{"command": "SetAllTriggerLevels", "label": "TriggerLevel", "value": [23.0, 24.0, 25.0, 26.0]}',
        '{"request": "BiasVoltage"}',
    )
    by_label = {m["label"]: m["value"] for m in told}
    assert (by_label["InptMeasurementPeriod"], by_label["DetectorEnable"]) == (10, True)
    assert by_label["BiasCurrent"] == pytest.approx([12.0, 8.0, 3.0, 8.0], abs=0.03)
    assert by_label["TriggerLevel"] == pytest.approx([23.0, 24.0, 25.0, 26.0], abs=0.25)
    assert by_label["BiasVoltage"] == pytest.approx([0.6, 0.4, 0.15, 0.4], abs=0.01)
    (history,) = told_by(unit, '{"request": "TemperatureHistory"}')
    assert set(history["value"]) >= {"x", "T", "T2", "V_avrg", "BoardTemp1", "BoardTemp2"}
    (error,) = told_by(unit, '{"command": "Dance", "value": 1}')
    assert "Error" in error["label"]
