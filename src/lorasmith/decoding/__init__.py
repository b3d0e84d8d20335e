"""Generating faster: decode steps that are recorded once and replayed without Python."""

from lorasmith.decoding.graphs import decoding_graphs, require_cuda
from lorasmith.decoding.recorder import CudaGraphs, NotRecordable, Recorder

__all__ = ["CudaGraphs", "NotRecordable", "Recorder", "decoding_graphs", "require_cuda"]
