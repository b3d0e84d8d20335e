"""AdaLoRA's settings: PEFT's fields, of which those that it inherits from LoRA and never reads are refused."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from lorasmith.errors import AttachError
from lorasmith.methods.config import LayeredConfig

# fields that PEFT's class inherits from its LoraConfig and that change nothing: refused at any other value
UNREAD: dict[str, Any] = {
    "use_rslora": False,
    "alpha_pattern": {},
    "lora_bias": False,
    "layer_replication": None,
    "use_dora": False,
    "use_qalora": False,
    "qalora_group_size": 16,
    "use_bdlora": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "alora_invocation_tokens": None,
    "loftq_config": {},
    "eva_config": None,
    "corda_config": None,
    "lora_ga_config": None,
    "velora_config": None,
    "monteclora_config": None,
    "arrow_config": None,
    "kasa_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "ensure_weight_tying": False,
}


@dataclass
class AdaLoraConfig(LayeredConfig):
    """PEFT's fields and defaults; r is accepted and never read, as there: init_r is where the ranks start.

    For tinit steps all ranks stay; then, every deltaT steps, the least important triplets are set to zero, down to an
    average of target_r; the last tfinal steps keep that choice. total_step None is the number of steps of the run that
    trains it. beta1 and beta2 smooth the importance and its uncertainty. rank_pattern is what was kept, one truth value
    a rank, by `<module>.lora_E`. Raises AttachError for values out of range, for a schedule without steps to allocate
    in, and for fields of LoRA's that AdaLoRA never reads (UNREAD).
    """

    METHOD: ClassVar[str] = "ADALORA"
    NEVER_READ: ClassVar[tuple[str, ...]] = ("r",)

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    fan_in_fan_out: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    init_lora_weights: bool = True
    target_r: int = 8
    init_r: int = 12
    tinit: int = 0
    tfinal: int = 0
    deltaT: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.5
    total_step: int | None = None
    rank_pattern: dict[str, list[bool]] | None = None
    use_rslora: bool = False
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    lora_bias: bool = False
    layer_replication: list[tuple[int, int]] | None = None
    use_dora: bool = False
    use_qalora: bool = False
    qalora_group_size: int = 16
    use_bdlora: Any = None
    target_parameters: list[str] | None = None
    trainable_token_indices: Any = None
    alora_invocation_tokens: list[int] | None = None
    loftq_config: dict[str, Any] = field(default_factory=dict)
    eva_config: Any = None
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
        if min(self.init_r, self.target_r, self.deltaT) < 1:
            raise AttachError(
                f"init_r={self.init_r}, target_r={self.target_r}, deltaT={self.deltaT}: each must be at least 1"
            )
        if not 0 <= self.lora_dropout < 1:
            raise AttachError(f"lora_dropout={self.lora_dropout} must lie in [0, 1)")
        for name in ("beta1", "beta2"):
            if not 0 < getattr(self, name) < 1:
                raise AttachError(f"{name}={getattr(self, name)} must lie between 0 and 1")
        if self.orth_reg_weight < 0:
            raise AttachError(f"orth_reg_weight={self.orth_reg_weight} must not be negative")
        if self.bias not in ("none", "all", "lora_only"):
            raise AttachError(f"bias={self.bias!r} is not one of none, all, lora_only")
        for name, default in UNREAD.items():
            if getattr(self, name) != default:
                raise AttachError(f"{name}={getattr(self, name)!r}: AdaLoRA never reads it; leave it at {default!r}")
        if self.total_step is not None:
            self.check_schedule(self.total_step)

    def check_schedule(self, total: int) -> None:
        """Raise AttachError where total steps leave none between the first tinit and the last tfinal."""
        if total < 1 or self.tinit >= total - self.tfinal:
            raise AttachError(
                f"tinit={self.tinit} and tfinal={self.tfinal} leave no step of {total} to allocate ranks in; "
                "lower one of them or train for more steps"
            )

    def kept_at(self, path: str) -> list[bool]:
        """Which of the init_r ranks the module at path has."""
        return (self.rank_pattern or {}).get(f"{path}.lora_E", [True] * self.init_r)
