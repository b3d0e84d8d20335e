"""The contestants of bench_methods.py: a recipe's method section, and a learning rate for each of the two tasks.

Rates for the tales were chosen once, coarsely, on seed 0 among powers of about three around what the papers use.
Those for the reviews come from `bench_methods.py --search`: that of the least loss, or one a third as high where that
loses at most 0.02 more. LoRA and its placements, rsLoRA, DoRA, LoRA-FA and BOFT kept their first rate, unsearched.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """A row of the table: the recipe's method section and rates for (reviews, tales), None where it cannot run.

    training holds other fields of the recipe's training section; share names the contestant whose parameter count the
    rank is set to match.
    """

    section: dict[str, Any]
    rates: tuple[float | None, float | None]
    training: dict[str, Any] = field(default_factory=dict)
    share: str | None = None


LORA = "LoRA"
RATES = (1e-3, 3e-3)


def lora(rates: tuple[float, float] = RATES, training: dict[str, Any] | None = None, **fields: Any) -> Method:
    return Method({"name": "lora", "r": 8, "lora_alpha": 16, **fields}, rates, training or {})


def placed(**fields: Any) -> Method:
    return Method({"name": "lora", "r": 8, "lora_alpha": 16, **fields}, RATES, share=LORA)


def named(name: str, reviews: float | None, tales: float | None, **fields: Any) -> Method:
    return Method({"name": name, **fields}, (reviews, tales))


METHODS: dict[str, Method] = {
    LORA: lora(),
    "LoRA, attention only": placed(target_modules="attention"),
    "LoRA, MLP only": placed(target_modules="mlp"),
    "LoRA, first half of the layers": placed(layers="first-half"),
    "LoRA, last half of the layers": placed(layers="last-half"),
    "rsLoRA": lora(use_rslora=True),
    "DoRA": lora(use_dora=True),
    "LoRA+": lora((3e-4, 3e-3), training={"loraplus_lr_ratio": 16}),
    "LoRA-FA": lora(training={"optimizer": "lorafa"}),
    "PiSSA": lora(init_lora_weights="pissa"),
    "OLoRA": lora((3e-4, 3e-3), init_lora_weights="olora"),
    "EVA": lora(init_lora_weights="eva"),
    "AdaLoRA": named("adalora", 3e-2, 1e-2),
    "VeRA": named("vera", 3e-2, 1e-2),
    "LoHa": named("loha", 1e-2, 3e-3),
    "LoKr": named("lokr", 1e-2, 1e-2),
    "OFT": named("oft", 1e-3, 3e-3),
    "BOFT": named("boft", 1e-3, 3e-3),
    "SHiRA": named("shira", 3e-3, 3e-3),
    "IA3": named("ia3", 3e-2, 3e-2),
    "bottleneck, Houlsby": named("bottleneck", 3e-3, 3e-3, placement="houlsby"),
    "bottleneck, Pfeiffer": named("bottleneck", 1e-2, 3e-3, placement="pfeiffer"),
    # BERT's feed-forward is no module of its own
    "bottleneck, parallel": named("bottleneck", None, 3e-3, placement="parallel"),
    "prompt tuning": named("prompt_tuning", 1e-1, 3e-2, num_virtual_tokens=20),
    "p-tuning": named("p_tuning", 3e-2, 3e-3, num_virtual_tokens=20),
    "prefix tuning": named("prefix_tuning", 3e-2, 3e-2, num_virtual_tokens=20),
    # the language model has no biases
    "BitFit": named("bitfit", 3e-3, None),
    "norms": named("ln_tuning", 3e-3, 1e-2),
    "last layer, whole": named("full", 1e-3, 1e-3, layers="last-1"),
    # a classifier's head trains with every method
    "head alone": named("full", None, 1e-3, target_modules="head"),
    "full": named("full", 1e-4, 1e-3),
}
