"""What is opened as a file of events and is none."""

import os

import pytest

from qkdhw.errors import EventError
from qkdhw.formats import open_events


@pytest.mark.parametrize("format_name", [None, "ptu", "tdc1", "hdf5", "csv"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, format_name):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(EventError, match="is a pipe"):
        open_events(pipe, format_name)
