"""A line chart as inline SVG: no script, no font file, colours from the page's style sheet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from lorasmith.report.axis import Scale, nice_ticks
from lorasmith.report.words import short, text

Point = tuple[float, float]

WIDTH, HEIGHT = 400, 230
RIGHT, TOP, BOTTOM = 14, 10, 28
# width of a character of a tick label, and what stands around it
CHARACTER, BESIDE = 6.4, 12
# more points than pixels only blacken the paper
MOST_POINTS = 700
# so many single points can still be told apart
MOST_DOTS = 40


@dataclass(frozen=True)
class Line:
    """Points in order of step; kind names the style: train, faint, eval or plain."""

    name: str
    points: Sequence[Point]
    kind: str = "plain"


@dataclass(frozen=True)
class Chart:
    """Lines over steps. show writes a value at the axis; from_zero starts the axis there."""

    title: str
    lines: Sequence[Line]
    show: Callable[[float], str] = short
    from_zero: bool = False

    def html(self) -> str:
        """A figure with caption, legend and drawing; nothing where no line has a point."""
        lines = [line for line in self.lines if line.points]
        if not lines:
            return ""
        named = [line for line in lines if line.kind != "faint"]
        legend = "".join(f'<span class="key {line.kind}">{text(line.name)}</span>' for line in named)
        shown = f'<span class="legend">{legend}</span>' if len(named) > 1 else ""
        return f"<figure><figcaption>{text(self.title)}{shown}</figcaption>{self._svg(lines)}</figure>"

    def _svg(self, lines: Sequence[Line]) -> str:
        steps = [step for line in lines for step, _ in line.points]
        values = [value for line in lines for _, value in line.points]
        ticks = nice_ticks(min([*values, 0.0] if self.from_zero else values), max(values))
        left = BESIDE + CHARACTER * max(len(self.show(tick)) for tick in ticks)
        across = Scale(min(steps), max(max(steps), min(steps) + 1), left, WIDTH - RIGHT)
        up = Scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
        drawn = "".join(_line(line, across, up) for line in lines)
        last = named_last(lines)
        spoken = f"{self.title}: {self.show(last.points[0][1])} to {self.show(last.points[-1][1])}"
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(spoken)}">'
            f"{self._grid(ticks, up, left)}{_step_axis(across)}{drawn}</svg>"
        )

    def _grid(self, ticks: Sequence[float], up: Scale, left: float) -> str:
        rows = []
        for tick in ticks:
            y = up(tick)
            rows.append(f'<line class="grid" x1="{left:.1f}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            rows.append(
                f'<text class="tick" x="{left - 7:.1f}" y="{y + 4:.1f}" text-anchor="end">{self.show(tick)}</text>'
            )
        return "".join(rows)


def named_last(lines: Sequence[Line]) -> Line:
    """The line that a reader who hears the chart is told of: the last one that is not only a backdrop."""
    return [line for line in lines if line.kind != "faint"][-1]


def smoothed(points: Sequence[Point], window: int = 0) -> list[Point]:
    """Running medians over window points (default: a twentieth of them), which ignore single spikes."""
    reach = (window or max(3, len(points) // 20)) // 2
    values = [value for _, value in points]
    return [(step, median(values[max(0, place - reach) : place + reach + 1])) for place, (step, _) in enumerate(points)]


def _line(line: Line, across: Scale, up: Scale) -> str:
    kept = _thinned(line.points)
    path = " ".join(f"{across(step):.1f},{up(value):.1f}" for step, value in kept)
    drawn = f'<polyline class="line {line.kind}" points="{path}"/>' if len(kept) > 1 else ""
    if line.kind == "eval" or len(kept) == 1:
        drawn += "".join(_dot(line, point, across, up) for point in kept[:: max(1, len(kept) // MOST_DOTS)])
    return drawn


def _dot(line: Line, point: Point, across: Scale, up: Scale) -> str:
    step, value = point
    told = text(f"step {step:g}: {short(value)}")
    return (
        f'<circle class="dot {line.kind}" cx="{across(step):.1f}" cy="{up(value):.1f}" r="3">'
        f"<title>{told}</title></circle>"
    )


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    stride = -(-len(points) // MOST_POINTS)
    return points if stride <= 1 else [*points[::stride], points[-1]]


def _step_axis(across: Scale) -> str:
    ticks = [tick for tick in nice_ticks(across.low, across.high, 4) if across.low <= tick <= across.high]
    whole = [tick for tick in ticks if tick == round(tick)]
    labels = [
        f'<text class="tick" x="{across(tick):.1f}" y="{HEIGHT - 9}" text-anchor="middle">{short(tick)}</text>'
        for tick in whole
        if across(tick) < WIDTH - RIGHT - 40
    ]
    end = f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 9}" text-anchor="end">step {short(across.high)}</text>'
    return "".join(labels) + end
