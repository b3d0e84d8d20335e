"""The curves of a run over its steps."""

from lorasmith.report.chart import Chart, Line, Point, smoothed
from lorasmith.report.run_data import RunData

# with fewer points a smoothed line hides more than it shows
FEWEST_TO_SMOOTH = 30


def curves(run: RunData) -> str:
    """Loss, learning rate, gradient norm, throughput and memory, those that were logged."""
    charts = [
        Chart("Loss", [*_training_loss(run), Line("held out", run.series("eval_loss"), "eval")]),
        *_other_evaluations(run),
        Chart("Learning rate", [Line("learning rate", run.series("lr"))], from_zero=True),
        Chart("Gradient norm", _with_median(run, "grad_norm"), from_zero=True),
        Chart("Tokens a second", _with_median(run, "tokens_per_second"), from_zero=True),
        Chart("Memory in MiB", _memory(run), from_zero=True),
    ]
    drawn = "".join(chart.html() for chart in charts)
    if not drawn:
        return "<p class='absent'>No step has been logged: metrics.jsonl is missing or empty.</p>"
    return f'<div class="charts">{drawn}</div>'


def _training_loss(run: RunData) -> list[Line]:
    points = run.series("loss")
    if len(points) < FEWEST_TO_SMOOTH:
        return [Line("training", points, "train")]
    return [Line("training, each step", points, "faint"), Line("training", smoothed(points), "train")]


def _with_median(run: RunData, name: str) -> list[Line]:
    points = run.series(name)
    if len(points) < FEWEST_TO_SMOOTH:
        return [Line(name, points)]
    return [Line("each step", points, "faint"), Line("median", smoothed(points))]


def _memory(run: RunData) -> list[Line]:
    return [Line("now", _mebibytes(run, "memory_bytes")), Line("peak", _mebibytes(run, "memory_peak_bytes"), "eval")]


def _mebibytes(run: RunData, name: str) -> list[Point]:
    return [(step, value / 2**20) for step, value in run.series(name)]


def _other_evaluations(run: RunData) -> list[Chart]:
    logged = sorted({name for line in run.metrics for name in line if name.startswith("eval_")})
    # perplexity repeats the loss
    others = [name for name in logged if name not in ("eval_loss", "eval_perplexity")]
    return [
        Chart(f"Held-out {name.removeprefix('eval_').replace('_', ' ')}", [Line("held out", run.series(name), "eval")])
        for name in others
    ]
