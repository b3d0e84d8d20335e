"""The contract of a library of data sets, and the table of those that there are."""

from abc import ABC, abstractmethod
from pathlib import Path

from lorasmith.data.record import Record
from lorasmith.registry import Registry


class Library(ABC):
    """Finds data sets by name and reads the folders that it saved."""

    @abstractmethod
    def by_name(self, name: str, split: str | None, subset: str | None) -> list[Record]:
        """The records of a published data set; DataError where it, its split or the library is missing."""

    @abstractmethod
    def from_folder(self, folder: Path, split: str | None) -> list[Record]:
        """The records of a data set that the library saved to folder."""


libraries: Registry[Library] = Registry("library of data sets", "lorasmith.data.libraries")
