"""Adapters that other programs wrote, as PEFT's; one file a layout."""

from lorasmith.attach.foreign.loralib import Loralib, from_loralib

__all__ = ["Loralib", "from_loralib"]
