"""Numbers and text as people read them in a page."""

from html import escape

from lorasmith.json_text import NOT_FINITE

MINUS = "\N{MINUS SIGN}"


def text(value: object) -> str:
    """value with HTML's characters made harmless; nothing for None."""
    return "" if value is None else escape(str(value), quote=True)


def short(value: float) -> str:
    """Four significant digits, thousands separated, tiny and huge numbers with an exponent."""
    size = abs(value)
    if size >= 1e7 or 0 < size < 1e-3:
        return _exponent(value)
    elif size >= 1000:
        shown = f"{value:,.0f}"
    else:
        shown = f"{value:.4g}"
    return shown.replace("-", MINUS)


def finite(value: float | None) -> str:
    """short, or words for a number that is none."""
    return NOT_FINITE if value is None else short(value)


def _exponent(value: float) -> str:
    digits, power = f"{value:.2e}".split("e")
    digits = digits.rstrip("0").rstrip(".").replace("-", MINUS)
    return f"{digits}e{int(power)}"


def size(amount: float) -> str:
    """Bytes in the unit that keeps them short."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if amount >= scale:
            return f"{amount / scale:.3g} {unit}" if amount < 1000 * scale else f"{amount / scale:,.0f} {unit}"
    return f"{amount:.0f} B"


def count(amount: float) -> str:
    """A number of parameters, such as 1.3 M."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if amount >= scale:
            return f"{amount / scale:.3g} {unit}"
    return f"{amount:.0f}"


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds, the two largest."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def label(metric: str) -> str:
    """The name of a metric in words."""
    named = {"f1": "F1, mean of classes", "f1_binary": "F1 of class 1", "loss": "loss (nats)"}
    return named.get(metric, metric.replace("_", " "))
