"""Plain text: the whole file is one document."""

from pathlib import Path

from lorasmith.data.record import Record
from lorasmith.data.sources.source import read_text, sources


@sources.register(".txt")
def read_txt(path: Path) -> list[Record]:
    """One record with the field "text"; the encoder cuts it into windows."""
    text = read_text(path)
    return [Record({"text": text}, f"{path}")] if text.strip() else []
