"""transformers' quantizer hook: `from_pretrained` streams weights into our layers.

transformers reads one tensor at a time and hands it to a conversion operation; ours stores it quantized and lets the
source go. A checkpoint that is already quantized is taken over byte for byte.

An exception inside an operation becomes a table in transformers' log; so the operations note the first failure and
it is raised, as itself, when the model is complete. Registered when this module is imported.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer

from lorasmith.errors import FormatError, LorasmithError, ModelError
from lorasmith.models.placement import dense_reasons, replace_linears_, require_skips, stored_dense
from lorasmith.models.quantization_config import METHOD, QuantizationConfig
from lorasmith.models.report import report_on
from lorasmith.quantized import QuantizedWeight
from lorasmith.quantized.bitsandbytes_keys import STORED_NAMES, from_stored, to_stored


class LorasmithQuantizer(HfQuantizer):
    """Loads, saves and reloads models whose linear layers are QuantizedLinear."""

    requires_calibration = False
    quantization_config: QuantizationConfig

    def __init__(self, quantization_config: QuantizationConfig, **keywords: Any) -> None:
        super().__init__(quantization_config, **keywords)
        # names of layers -> whether the source weight is transposed
        self.layers: dict[str, bool] = {}
        self.filled: set[str] = set()
        # shapes of the dense parameters, by name
        self.shapes: dict[str, torch.Size] = {}
        self.failure: LorasmithError | None = None

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **keywords: Any) -> None:
        config = self.quantization_config
        if self.pre_quantized:
            left = stored_dense(model, config.skip_modules or ())
        else:
            require_skips(model, config.skip_modules or ())
            left = list(dense_reasons(model, config.skip_modules or ()))
        dtype = keywords.get("dtype") or torch.get_default_dtype()
        self.layers = replace_linears_(
            model,
            left,
            config.scheme,
            dtype,
            compute_dtype=config.compute_dtype,
            int8_threshold=config.int8_threshold,
        )
        if not self.layers:
            raise ModelError(f"{type(model).__name__} has no linear layer to quantize; load it without quantization")
        if not self.pre_quantized:
            config.skip_modules = left
            self._expect_dense_weights(model, dtype)
        self.shapes = {name: p.shape for name, p in model.named_parameters() if p.dtype.is_floating_point}

    def _expect_dense_weights(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        # transformers 5.17 casts what it reads to the type of the parameter that it finds
        for name in self.layers:
            layer = _layer(model, name)
            weight = torch.empty(layer.shape, dtype=dtype, device="meta")
            layer.weight = nn.Parameter(weight, requires_grad=False)

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **keywords: Any) -> bool:
        name, _, parameter = param_name.rpartition(".")
        return name in self.layers and parameter == "weight"

    def param_element_size(self, model: PreTrainedModel, param_name: str, param: Tensor) -> float:
        """Bytes an element of the dense weight takes once it is stored."""
        if self.param_needs_quantization(model, param_name):
            return self.quantization_config.scheme.number_format.bits / 8
        return param.element_size()

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantize(self)

    def get_weight_conversions(self) -> list[WeightConverter]:
        if not self.pre_quantized:
            return []
        # longest first: a name ends at the first pattern that it holds
        names = sorted(STORED_NAMES, key=len, reverse=True)
        return [WeightConverter(names, "weight", [_TakeOver(self)])]

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **keywords: Any) -> PreTrainedModel:
        if self.failure is not None:
            raise self.failure
        self._refuse_incomplete(model)
        for parameter in model.parameters():
            if parameter.dtype == torch.uint8:
                parameter.requires_grad_(False)
        forget_takeover_(model)
        report_on(model).log()
        return model

    def _refuse_incomplete(self, model: PreTrainedModel) -> None:
        for name in self.layers:
            if name not in self.filled:
                raise ModelError(f"the checkpoint has no weight for {name}; it is incomplete or of another model")
            bias = getattr(_layer(model, name), "bias", None)
            if bias is not None and not getattr(bias, "_is_hf_initialized", False):
                raise ModelError(f"the checkpoint has no bias for {name}; it is incomplete or of another model")
        for name, parameter in model.named_parameters():
            # transformers 5.17 takes any shape once there is a quantizer
            if parameter.dtype.is_floating_point and parameter.shape != self.shapes[name]:
                expected = list(self.shapes[name])
                found = list(parameter.shape)
                raise ModelError(f"{name} has the shape {found}, config.json asks for {expected}; one is wrong")

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        return stored_state_dict(model), {}

    def is_serializable(self, *arguments: Any, **keywords: Any) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        """Whether transformers may compile the steps of generation."""
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    def note(self, error: LorasmithError) -> None:
        """Keep the first failure for the end of loading."""
        self.failure = self.failure or error


class _Quantize(ConversionOps):
    """Stores a dense weight in its layer, and names the parameters that hold it now."""

    def __init__(self, hf_quantizer: LorasmithQuantizer) -> None:
        self.hf_quantizer = hf_quantizer

    @torch.no_grad()
    def convert(  # type: ignore[override]  # called by keyword, as transformers' own narrow it
        self, input_dict: dict[str, Any], model: nn.Module, **keywords: Any
    ) -> dict[str, Tensor]:
        parameters: dict[str, Tensor] = {}
        for key, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            name = key.rpartition(".")[0]
            layer = _layer(model, name)
            try:
                layer.quantize_(weight.T.contiguous() if self.hf_quantizer.layers[name] else weight, key)
            except LorasmithError as error:
                self.hf_quantizer.note(error)
                continue
            self.hf_quantizer.filled.add(name)
            parameters |= {f"{name}.{part}": stored for part, stored in layer.stored.items()}
        return parameters


class _TakeOver(ConversionOps):
    """Puts stored tensors into their layer as they are; passes the weights of dense layers through."""

    def __init__(self, hf_quantizer: LorasmithQuantizer) -> None:
        self.hf_quantizer = hf_quantizer

    def __deepcopy__(self, memo: dict[int, Any]) -> "_TakeOver":
        # transformers copies a conversion for each weight; the record of what was filled must stay one
        return _TakeOver(self.hf_quantizer)

    @torch.no_grad()
    def convert(  # type: ignore[override]  # called by keyword, as transformers' own narrow it
        self, input_dict: dict[str, Any], model: PreTrainedModel, full_layer_name: str, **keywords: Any
    ) -> dict[str, Tensor]:
        tensors = {key: value[0] if isinstance(value, list) else value for key, value in input_dict.items()}
        name = full_layer_name.rpartition(".")[0]
        if name not in self.hf_quantizer.layers:
            return self._pass(tensors, model, full_layer_name)
        layer = _layer(model, name)
        try:
            from_stored(layer, tensors, full_layer_name)
        except LorasmithError as error:
            self.hf_quantizer.note(error)
            return {}
        self.hf_quantizer.filled.add(name)
        return {f"{name}.{part}": stored for part, stored in layer.stored.items()}

    def _pass(self, tensors: dict[str, Tensor], model: PreTrainedModel, name: str) -> dict[str, Tensor]:
        if set(tensors) != {"weight"} or not tensors["weight"].is_floating_point():
            self.hf_quantizer.note(
                FormatError(f"{name} is stored quantized, but its layer is listed in skip_modules; correct config.json")
            )
            return {}
        expected = model.get_parameter_or_buffer(name).dtype
        return {"weight": tensors["weight"].to(expected)}


def stored_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of model with every quantized weight under the names that a file holds."""
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, QuantizedWeight):
            prefix = f"{name}." if name else ""
            for part in module.stored:
                del state[prefix + part]
            state |= to_stored(module, prefix)
    return state


def register() -> None:
    """Make quant_method lorasmith known to transformers; a second call does nothing."""
    if METHOD not in auto.AUTO_QUANTIZATION_CONFIG_MAPPING:
        auto.register_quantization_config(METHOD)(QuantizationConfig)
    if METHOD not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantizer(METHOD)(LorasmithQuantizer)


def _layer(model: nn.Module, name: str) -> QuantizedWeight:
    layer = model.get_submodule(name)
    if not isinstance(layer, QuantizedWeight):
        raise ModelError(f"{name} was replaced while it was being loaded; it is a {type(layer).__name__} now")
    return layer


def forget_takeover_(model: Any) -> None:
    """Take the quantizer's steps, ours or another's, out of the conversions that saving would reverse.

    None is needed: stored_state_dict gives the stored names.
    """
    # a model that was built and not loaded has none
    steps = model.__dict__.get("_weight_conversions") or []
    model._weight_conversions = [step for step in steps if not _of_quantizer(step)]


def _of_quantizer(step: Any) -> bool:
    operations = step.operations if isinstance(step, WeightConverter) else []
    return any(getattr(operation, "hf_quantizer", None) is not None for operation in operations)


# from_pretrained finds a quantizer by its registered name only, so importing the package has to enter it
register()
