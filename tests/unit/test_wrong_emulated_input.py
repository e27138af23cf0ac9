"""What an emulated unit cannot be told: times, ports and names that there are not."""

import pytest

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.address import place_of
from qkdhw_emulators.faults import FaultSwitches
from qkdhw_emulators.new_unit import names_of


@pytest.mark.parametrize("option", ["seconds=nan", "seconds=-1", "seconds=inf", "rate=nan", "rate=-1", "count=0"])
def test_a_fault_takes_no_such_number(option):
    with pytest.raises(ConfigurationError, match="fault delay"):
        FaultSwitches([f"delay:{option}"])


@pytest.mark.parametrize(
    "url",
    ["tcp://127.0.0.1:99999", "zmq://127.0.0.1:x", "visa://TCPIP::127.0.0.1::99999::SOCKET", f"tcp://h:{'9' * 5000}"],
)
def test_a_unit_is_not_served_on_a_port_that_there_is_not(url):
    with pytest.raises(ConfigurationError, match="cannot be served"):
        place_of(url)


@pytest.mark.parametrize("name", ["import", "class", "async"])
def test_a_unit_is_not_called_as_a_keyword(name):
    with pytest.raises(ConfigurationError, match="cannot be called"):
        names_of(name)
