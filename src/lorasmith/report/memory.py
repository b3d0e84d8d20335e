"""Memory, predicted by component and measured."""

from lorasmith.report.run_data import RunData, mapping, number
from lorasmith.report.words import size, text

# p0 to p9 of the style sheet
_COLOURS = 10


def memory(run: RunData) -> str:
    """Predicted components as one bar, the measured peak as another on the same scale, and the figures."""
    parts = {str(name): number(amount) or 0.0 for name, amount in mapping(run.plan.get("components")).items()}
    parts = {name: amount for name, amount in parts.items() if amount > 0}
    measured = measured_peak(run)
    if not parts and measured is None:
        return "<p class='absent'>No memory was predicted or measured.</p>"
    predicted = sum(parts.values())
    full = max(predicted, measured or 0.0)
    bars = (
        _predicted_bar(parts, predicted, full)
        if parts
        else "<p class='absent'>No prediction: plan.json is missing.</p>"
    )
    if measured is None:
        bars += "<p class='absent'>Not measured yet.</p>"
    else:
        bars += _bar(
            "measured peak", measured, full, f'<i class="measured" style="width:{100 * measured / full:.2f}%"></i>'
        )
    return f"{bars}{_deviation(predicted, measured)}{_table(parts)}"


def measured_peak(run: RunData) -> float | None:
    """The highest measured memory in bytes, or None."""
    return max((value for _, value in run.series("memory_peak_bytes")), default=None)


def _predicted_bar(parts: dict[str, float], predicted: float, full: float) -> str:
    pieces = "".join(
        f'<i class="{_colour(place)}" style="width:{amount / full:.2%}" title="{text(name)}: {size(amount)}"></i>'
        for place, (name, amount) in enumerate(parts.items())
    )
    return _bar("predicted", predicted, full, pieces)


def _colour(place: int) -> str:
    return f"p{place % _COLOURS}"


def _bar(name: str, amount: float, full: float, pieces: str) -> str:
    return f'<div class="bar"><span>{name}<b>{size(amount)}</b></span><div class="track">{pieces}</div></div>'


def _deviation(predicted: float, measured: float | None) -> str:
    if not predicted or not measured:
        return ""
    off = predicted / measured - 1
    return f'<p class="note">The prediction was {abs(off):.0%} {"above" if off > 0 else "below"} the measurement.</p>'


def _table(parts: dict[str, float]) -> str:
    rows = "".join(
        f'<tr><td><i class="swatch {_colour(place)}"></i>{text(name)}</td><td>{size(amount)}</td></tr>'
        for place, (name, amount) in enumerate(parts.items())
    )
    return f'<table class="parts">{rows}</table>' if rows else ""
