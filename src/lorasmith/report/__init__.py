"""The page that a run leaves behind."""

from lorasmith.report.page import render_report

__all__ = ["render_report"]
