"""Generations before and after, side by side."""

from lorasmith.report.run_data import Record, RunData
from lorasmith.report.words import text


def samples(run: RunData) -> str:
    """A card for each prompt; nothing is shortened."""
    listed = run.samples()
    if not listed:
        return ""
    return "".join(_card(place, one) for place, one in enumerate(listed, 1))


def _card(place: int, sample: Record) -> str:
    expected = sample.get("expected") or sample.get("reference")
    wanted = f'<div class="expected"><h4>in the data</h4><p>{text(str(expected).strip())}</p></div>' if expected else ""
    return (
        f'<article class="sample"><div class="prompt"><h4>prompt {place}</h4><p>{text(sample.get("prompt"))}</p></div>'
        f'<div class="pair"><div class="before"><h4>before</h4>{_said(sample.get("before"))}</div>'
        f'<div class="after"><h4>after</h4>{_said(sample.get("after"))}</div></div>{wanted}</article>'
    )


def _said(generation: object) -> str:
    if generation is None:
        return "<p class='absent'>not generated</p>"
    return f"<p>{text(str(generation).strip())}</p>" if str(generation).strip() else "<p class='absent'>(nothing)</p>"
