"""Scores before and after, with their intervals on one axis."""

from lorasmith.report.axis import Scale
from lorasmith.report.run_data import Record, RunData, number
from lorasmith.report.words import finite, label, short, text

WIDTH, HEIGHT, MARGIN = 300, 46, 10


def comparison(run: RunData) -> str:
    """A row for each metric: its values, and their 95 % intervals drawn."""
    before, after = run.scores("before"), run.scores("after")
    names = list(after) or list(before)
    names += [name for name in before if name not in names]
    if not names:
        return "<p class='absent'>No scores: the run was not evaluated, or evaluation.json is missing.</p>"
    missing = "" if after else "<p class='absent'>Not scored after training yet.</p>"
    missing += "" if before else "<p class='absent'>Not scored before training.</p>"
    rows = "".join(_row(name, before.get(name), after.get(name)) for name in names)
    examples = max(int(number(one.get("n")) or 0) for one in [*before.values(), *after.values()])
    note = f"Bars are 95 % intervals{f', from {examples:,} held-out examples' if examples else ''}."
    return f'<div class="scores">{rows}</div>{missing}<p class="note">{note}</p>'


def _row(name: str, before: Record | None, after: Record | None) -> str:
    return (
        f'<div class="score"><h3>{text(label(name))}</h3>'
        f'<dl><dt class="before">before</dt><dd>{_shown(before)}</dd>'
        f'<dt class="after">after</dt><dd>{_shown(after)}</dd></dl>{_intervals(before, after)}</div>'
    )


def _shown(estimate: Record | None) -> str:
    if estimate is None:
        return "not scored"
    low, high = number(estimate.get("low")), number(estimate.get("high"))
    reach = "" if low is None or high is None else f"<small>{short(low)} to {short(high)}</small>"
    return f"<b>{finite(estimate['value'])}</b>{reach}"


def _intervals(before: Record | None, after: Record | None) -> str:
    """The bars of the scores that have a finite value."""
    both = (("before", before), ("after", after))
    given = [(kind, one) for kind, one in both if one is not None and one["value"] is not None]
    if not given:
        return ""
    ends = [number(one.get(field)) for _, one in given for field in ("low", "value", "high")]
    known = [end for end in ends if end is not None]
    low, high = min(known), max(known)
    if high <= low:
        high = low + (abs(low) or 1.0)
    scale = Scale(low, high, MARGIN, WIDTH - MARGIN)
    bars = "".join(_bar(kind, one, scale, 15 + 18 * place) for place, (kind, one) in enumerate(given))
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">{bars}</svg>'


def _bar(kind: str, estimate: Record, scale: Scale, y: float) -> str:
    value = scale(float(estimate["value"]))
    low, high = number(estimate.get("low")), number(estimate.get("high"))
    rail = f'<line class="rail" x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y}" y2="{y}"/>'
    dot = f'<circle class="mark {kind}" cx="{value:.1f}" cy="{y}" r="5"/>'
    if low is None or high is None:
        return rail + dot
    line = f'<line class="reach {kind}" x1="{scale(low):.1f}" x2="{scale(high):.1f}" y1="{y}" y2="{y}"/>'
    return rail + line + dot
