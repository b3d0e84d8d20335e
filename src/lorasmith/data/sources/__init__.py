"""Where records come from: one file a format, registered by suffix; data sets by name."""

from lorasmith.data.sources.reading import read
from lorasmith.data.sources.source import sources

__all__ = ["read", "sources"]
