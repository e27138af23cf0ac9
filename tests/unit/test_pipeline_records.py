"""A sender's record file gives its pulses, or says what is wrong with it and where."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qkdhw.bench.pipeline import read_record_file
from qkdhw.bench.pipeline.records import RecordReader
from qkdhw.errors import ConfigurationError, EventError
from qkdhw.model import PreparationBlock

GOOD = {"pulse": [3, 4, 5], "intensity": [0, 1, 2], "basis": [0, 1, 0], "bit": [0, 1, 1]}


@pytest.fixture
def write(tmp_path):
    def write(**columns):
        path = tmp_path / "record.parquet"
        pq.write_table(pa.table(GOOD | columns), path)
        return path

    return write


def test_pulses_without_a_gap_are_a_block(write):
    (block,) = read_record_file(write())
    assert isinstance(block, PreparationBlock)
    assert block.first_pulse_index == 3
    assert block.record.tolist() == [0, 7, 9]


def test_pulses_of_a_third_basis_are_left_out(write):
    (rows,) = read_record_file(write(basis=[0, 2, 0]))
    assert (rows.pulse.tolist(), rows.record.tolist()) == ([3, 5], [0, 9])


def test_a_record_of_a_third_basis_alone_gives_nothing(write):
    assert list(read_record_file(write(basis=[2, 2, 2]))) == []
    with RecordReader(write(basis=[2, 2, 2])) as reader:
        record, found = reader.take(np.array([3, 4]))
    assert (record.tolist(), found.tolist()) == ([0, 0], [False, False])


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"bit": [0, None, 1]}, "bit .* 1 empty"),
        ({"bit": ["0", "1", "1"]}, "bit is of type string"),
        ({"pulse": [3.5, 4.5, 5.5]}, "pulse is of type double"),
        ({"bit": [0, 2, 1]}, "bit is 0 to 2"),
        ({"basis": [0, -1, 0]}, "basis is -1 to 0"),
        ({"basis": [0, 3, 0]}, "basis is 0 to 3"),
        ({"intensity": [0, -1, 0]}, "intensity is -1 to 0"),
        ({"intensity": [0, 256, 0]}, "intensity is 0 to 256"),
        ({"pulse": [-3, 4, 5]}, "pulse is -3 to 5"),
        ({"pulse": [3, 4, 1 << 62]}, "pulse is 3 to"),
        ({"pulse": [3, 5, 4]}, "not in order"),
    ],
)
def test_what_is_no_record_is_refused(write, columns, said):
    with pytest.raises(EventError, match=said) as refused:
        list(read_record_file(write(**columns)))
    assert refused.value.remedy


def test_more_than_three_intensities_are_refused(write):
    with pytest.raises(ConfigurationError, match="more than 3 intensities"):
        list(read_record_file(write(intensity=[0, 3, 0])))
