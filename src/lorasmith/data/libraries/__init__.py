"""Libraries of data sets, imported only when a data set is asked for by its name: importing them takes seconds."""

from lorasmith.data.libraries.library import libraries

__all__ = ["libraries"]
