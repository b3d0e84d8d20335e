"""The head of the page: what was run, and the few numbers that say how it went."""

from lorasmith.report.run_data import RunData, mapping, number
from lorasmith.report.words import count, duration, finite, label, short, size, text


def heading(run: RunData) -> str:
    """Name, model, method and length in a sentence."""
    method = mapping(run.recipe.get("method")).get("name") or run.summary.get("method")
    model = mapping(run.recipe.get("model")).get("path") or run.summary.get("model")
    storage = mapping(run.recipe.get("quantization")).get("format")
    told = [
        text({"lora": "LoRA", "ia3": "IA3"}.get(str(method), method)) if method else "",
        f"on {text(model)}" if model else "",
        f"(stored in {text(storage)})" if storage else "",
    ]
    sentence = " ".join(part for part in told if part)
    return f"<header><p class='kind'>lorasmith run</p><h1>{text(run.name)}</h1><p class='lead'>{sentence}</p></header>"


def tiles(run: RunData) -> str:
    """Tiles with the figures that exist."""
    made = [*_score_tile(run), *_parameter_tile(run), *_size_tile(run), *_length_tile(run)]
    shown = "".join(
        f"<div class='tile'><h3>{name}</h3><p>{value}</p><small>{note}</small></div>" for name, value, note in made
    )
    return f"<div class='tiles'>{shown}</div>" if shown else ""


def parameters(run: RunData) -> str:
    """Trainable parameters against the whole, as a bar."""
    trainable, total = _parameters(run)
    if trainable is None or not total:
        return "<p class='absent'>Parameters were not counted: summary.json is missing.</p>"
    # a sliver too thin to see would read as nothing
    width = max(0.4, 100 * trainable / total)
    told = f"{trainable:,.0f} of {total:,.0f} parameters train<b>{_percent(trainable, total)}</b>"
    return (
        f'<div class="bar"><span>{told}</span>'
        f'<div class="track"><i class="measured" style="width:{width:.2f}%"></i></div></div>'
    )


def _parameters(run: RunData) -> tuple[float | None, float | None]:
    nested = mapping(run.summary.get("parameters"))
    trainable = number(run.summary.get("trainable_parameters", nested.get("trainable")))
    return trainable, number(run.summary.get("total_parameters", nested.get("total")))


def _percent(part: float, whole: float) -> str:
    share = 100 * part / whole
    return f"{share:.2f} %" if share < 10 else f"{share:.1f} %"


def _score_tile(run: RunData) -> list[tuple[str, str, str]]:
    before, after = run.scores("before"), run.scores("after")
    best = next((name for name in ("accuracy", "loss", *after) if name in after), None)
    if best is None:
        return []
    start = f"{finite(before[best]['value'])} before" if best in before else "held out"
    return [(text(label(best)), finite(after[best]["value"]), start)]


def _parameter_tile(run: RunData) -> list[tuple[str, str, str]]:
    trainable, total = _parameters(run)
    if trainable is None or not total:
        return []
    return [("trained", _percent(trainable, total), f"{count(trainable)} of {count(total)} parameters")]


def _size_tile(run: RunData) -> list[tuple[str, str, str]]:
    adapter, model = number(run.summary.get("adapter_bytes")), number(run.summary.get("model_bytes"))
    if adapter is None:
        return []
    return [("adapter", size(adapter), f"beside {size(model)} of model in memory" if model else "on disk")]


def _length_tile(run: RunData) -> list[tuple[str, str, str]]:
    steps = number(run.summary.get("steps")) or max((step for step, _ in run.series("loss")), default=None)
    seconds = number(run.summary.get("seconds"))
    rates = sorted(rate for _, rate in run.series("tokens_per_second"))
    made = []
    if steps is not None:
        made.append(("steps", f"{steps:,.0f}", f"in {duration(seconds)}" if seconds is not None else "optimizer steps"))
    if rates:
        made.append(("tokens a second", short(rates[len(rates) // 2]), "median of the logged steps"))
    return made
