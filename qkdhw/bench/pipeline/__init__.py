"""One streaming pipeline from a source of events to sifted bits: at a bench NumPy in, NumPy out."""

from qkdhw.bench.pipeline.both_pair_sites import PairReport, sift_pairs
from qkdhw.bench.pipeline.both_sites import SeededBytes, SiftReport, sift_both, sift_files
from qkdhw.bench.pipeline.clock_log import ClockChange
from qkdhw.bench.pipeline.merged import Merged
from qkdhw.bench.pipeline.observer import Observer
from qkdhw.bench.pipeline.pair_sifter import PairSifterPipeline
from qkdhw.bench.pipeline.pairs import PairAnnouncerPipeline, PairStatistics
from qkdhw.bench.pipeline.receiver import EventPipeline
from qkdhw.bench.pipeline.records import PreparationRows, RecordReader, read_record_file
from qkdhw.bench.pipeline.sender import SenderPipeline
from qkdhw.bench.pipeline.sifted import PipelineStatistics, SenderStatistics, SiftedBits
from qkdhw.bench.pipeline.sync_frame import SyncFrame

__all__ = [
    "ClockChange", "EventPipeline", "Merged", "Observer", "PairAnnouncerPipeline", "PairReport", "PairSifterPipeline",
    "PairStatistics", "PipelineStatistics", "PreparationRows", "RecordReader", "SeededBytes", "SenderPipeline",
    "SenderStatistics", "SiftReport", "SiftedBits", "SyncFrame", "read_record_file", "sift_both", "sift_files",
    "sift_pairs",
]  # fmt: skip
