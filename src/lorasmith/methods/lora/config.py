"""LoRA's settings: PEFT's fields, of which those of variants that are not built are refused."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

from lorasmith.errors import AttachError
from lorasmith.methods.config import LayeredConfig
from lorasmith.methods.inits import EvaConfig, LoftQConfig, Start, start_of
from lorasmith.methods.kinds import with_fields
from lorasmith.methods.matching import patterned

# PEFT's fields for variants that this version does not have: accepted at these values, refused at any other
_VARIANTS: dict[str, tuple[Any, ...]] = {
    "layer_replication": (None,),
    "use_bdlora": (None, False),
    "alora_invocation_tokens": (None, []),
    "corda_config": (None,),
    "lora_ga_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "megatron_config": (None,),
}


@dataclass
class LoraConfig(LayeredConfig):
    """PEFT's fields and defaults. rank_pattern and alpha_pattern map a module name or expression to its own value.

    bias trains biases of the base too: "none", "all", or "lora_only" for the adapted modules. init_lora_weights names
    a start of `methods/inits/`, loftq_config and eva_config its settings. use_qalora averages the input of linear
    layers over qalora_group_size features. Raises AttachError for a rank below 1, a dropout outside 0 to 1, an unknown
    start, variants that exclude one another, and variants that are not built.
    """

    METHOD: ClassVar[str] = "LORA"

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    fan_in_fan_out: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    init_lora_weights: bool | str = True
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    lora_bias: bool = False
    layer_replication: list[tuple[int, int]] | None = None
    use_dora: bool = False
    use_qalora: bool = False
    qalora_group_size: int = 16
    use_bdlora: Any = None
    target_parameters: list[str] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    alora_invocation_tokens: list[int] | None = None
    loftq_config: dict[str, Any] | LoftQConfig = field(default_factory=dict)
    eva_config: EvaConfig | None = None
    corda_config: Any = None
    lora_ga_config: Any = None
    velora_config: Any = None
    monteclora_config: Any = None
    arrow_config: Any = None
    kasa_config: Any = None
    megatron_config: dict[str, Any] | None = None
    megatron_core: str | None = "megatron.core"
    ensure_weight_tying: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if min([self.r, *self.rank_pattern.values()]) < 1:
            raise AttachError(f"r={self.r}, rank_pattern={self.rank_pattern}: a rank must be at least 1")
        if not all(map(math.isfinite, [self.lora_alpha, *self.alpha_pattern.values()])):
            raise AttachError(f"lora_alpha={self.lora_alpha}, alpha_pattern={self.alpha_pattern}: give finite numbers")
        if not 0 <= self.lora_dropout < 1:
            raise AttachError(f"lora_dropout={self.lora_dropout} must lie in [0, 1)")
        if self.bias not in ("none", "all", "lora_only"):
            raise AttachError(f"bias={self.bias!r} is not one of none, all, lora_only")
        self.loftq_config = self.start().settings()
        self.eva_config = _settled(self.eva_config, self.init_lora_weights == "eva")
        if self.lora_bias and type(self.init_lora_weights) is not bool:
            raise AttachError(f"lora_bias with init_lora_weights={self.init_lora_weights!r}: use True or False for one")
        if self.use_dora and self.lora_bias:
            raise AttachError("use_dora and lora_bias: DoRA's lengths say nothing of a bias; leave one of them False")
        if self.use_dora and self.eva_config is not None:
            raise AttachError('use_dora with init_lora_weights="eva" is not built; leave one of the two away')
        if self.use_qalora and self.use_dora:
            raise AttachError("use_qalora and use_dora: no method pools and trains lengths; leave one of them False")
        if self.use_qalora and self.init_lora_weights not in (True, False, "gaussian"):
            raise AttachError(f"use_qalora with init_lora_weights={self.init_lora_weights!r}: leave it at True")
        if self.qalora_group_size < 1:
            raise AttachError(f"qalora_group_size={self.qalora_group_size} must be at least 1")
        for name, accepted in _VARIANTS.items():
            if getattr(self, name) not in accepted:
                raise AttachError(f"{name}={getattr(self, name)!r} is not supported yet; leave it at {accepted[0]!r}")

    @property
    def parameter_names(self) -> list[str] | None:
        return self.target_parameters

    @property
    def patterns(self) -> dict[str, Mapping[str, float]]:
        return {"rank_pattern": self.rank_pattern, "alpha_pattern": self.alpha_pattern}

    @property
    def ensures_tying(self) -> bool:
        return self.ensure_weight_tying

    def note_parameters(self, names: list[str]) -> None:
        self.target_parameters = names

    def refuses_parameters(self) -> str | None:
        """Why these settings mean nothing on a bare parameter; None where they do."""
        # the parameter's module multiplies by it out of sight: there is no input to drop, no output to add a bias to
        meaningless = {"lora_dropout": 0.0, "lora_bias": False, "fan_in_fan_out": False, "use_dora": False}
        for name, plain in meaningless.items():
            if getattr(self, name) != plain:
                return f"{name}={getattr(self, name)!r} has no meaning on a bare parameter; leave it at {plain!r}"
        if self.init_lora_weights not in (True, False, "gaussian"):
            return f"init_lora_weights={self.init_lora_weights!r} needs a layer's weight; leave it at True"
        return None

    def start(self) -> Start:
        """How the factors begin."""
        settings = self.loftq_config
        return start_of(
            self.init_lora_weights, asdict(settings) if isinstance(settings, LoftQConfig) else settings or {}
        )

    def rank_of(self, path: str) -> int:
        """Rank of the module at path."""
        return patterned(self.rank_pattern, path, self.r)

    def alpha_of(self, path: str) -> float:
        """Alpha of the module at path."""
        return patterned(self.alpha_pattern, path, self.lora_alpha)

    def with_ranks(self, ranks: Mapping[str, int], paths: Sequence[str]) -> Self:
        """This config for the modules at paths, those in ranks with another rank; EVA's may be 0, for no adapter.

        With eva_config's adjust_scaling_factors alpha moves with the rank, so that the scaling stays.
        """
        adjusts = self.eva_config is None or self.eva_config.adjust_scaling_factors
        rank_pattern, alpha_pattern = {}, {}
        for path in paths:
            old, alpha = self.rank_of(path), self.alpha_of(path)
            rank = ranks.get(path, old)
            if adjusts and rank != old:
                alpha *= math.sqrt(rank / old) if self.use_rslora else rank / old
            if rank not in (0, self.r):
                rank_pattern[path] = rank
            if rank and alpha != self.lora_alpha:
                alpha_pattern[path] = alpha
        return replace(self, rank_pattern=rank_pattern, alpha_pattern=alpha_pattern)

    def scaling_of(self, path: str) -> float:
        """The factor s of the module at path."""
        rank = self.rank_of(path)
        return self.alpha_of(path) / (math.sqrt(rank) if self.use_rslora else rank)


def _settled(settings: EvaConfig | dict[str, Any] | None, wanted: bool) -> EvaConfig | None:
    if settings is not None and not wanted:
        raise AttachError('eva_config says something only to init_lora_weights="eva"; leave one of the two away')
    if isinstance(settings, EvaConfig):
        return settings
    return with_fields(EvaConfig, settings or {}, "eva_config") if wanted else None
