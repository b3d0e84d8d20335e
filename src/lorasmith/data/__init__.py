"""Data: sources, shapes, chat templates, loss masks, mixing, packing, and the loader of micro-batches."""

from lorasmith.data.batch import Batch
from lorasmith.data.encoding import EncodeSettings, encode, encode_reported
from lorasmith.data.encoding_report import EncodingReport
from lorasmith.data.example import IGNORED, Example
from lorasmith.data.loader import Loader
from lorasmith.data.mixing import draws, mix, repeated, split
from lorasmith.data.record import Record, as_records
from lorasmith.data.shapes import SHAPES
from lorasmith.data.sources import read
from lorasmith.data.templates import PLAIN_CHAT_TEMPLATE, ensure_chat_template_

__all__ = [
    "IGNORED",
    "PLAIN_CHAT_TEMPLATE",
    "SHAPES",
    "Batch",
    "EncodeSettings",
    "EncodingReport",
    "Example",
    "Loader",
    "Record",
    "as_records",
    "draws",
    "encode",
    "encode_reported",
    "ensure_chat_template_",
    "mix",
    "read",
    "repeated",
    "split",
]
