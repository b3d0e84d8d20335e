"""Writing a quantized model as a folder that transformers loads."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorasmith.atomic import atomic_folder, new_folder
from lorasmith.errors import ModelError
from lorasmith.models.placement import linears
from lorasmith.models.quantization_config import QuantizationConfig
from lorasmith.models.quantizer import stored_state_dict
from lorasmith.models.quiet import quiet_transformers
from lorasmith.quantized import QuantizedLinear, Scheme

DEFAULT_SHARD = "4GB"


def save_quantized(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    out_dir: str | Path,
    *,
    max_shard_size: str = DEFAULT_SHARD,
) -> None:
    """Write model, its config and its tokenizer to out_dir, whole or not at all.

    Where the format is bitsandbytes' the folder says `quant_method: bitsandbytes` and loads in stock transformers
    with bitsandbytes; otherwise `quant_method: lorasmith`. Either loads back bit-equal here.

    Raises InputError for an out_dir that holds anything, ModelError where nothing is quantized or layers are stored in
    several schemes, WriteError where the disk refuses.
    """
    out_dir = new_folder(out_dir)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    schemes = {layer.scheme for layer in layers.values()}
    if len(schemes) != 1:
        found = ", ".join(sorted(map(str, schemes))) or "no quantized layer"
        raise ModelError(
            f"a saved model has one scheme for all its layers, this one has {found}; load it in one scheme"
        )
    scheme = schemes.pop()
    dense = [name for name, _ in linears(model)]
    fields = _stored_fields(scheme, dense, next(iter(layers.values())), model)
    with atomic_folder(out_dir) as folder:
        _write(model, folder, max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        _set_quantization(folder / "config.json", fields)


def _write(model: PreTrainedModel, folder: Path, max_shard_size: str) -> None:
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=stored_state_dict(model), max_shard_size=max_shard_size)


def _stored_fields(scheme: Scheme, dense: list[str], layer: QuantizedLinear, model: PreTrainedModel) -> dict[str, Any]:
    """The quantization_config of the saved config.json."""
    if scheme.bitsandbytes is None:
        config = QuantizationConfig.from_scheme(scheme, skip_modules=dense, compute_dtype=layer.compute_dtype)
        return config.to_dict()
    in_8_bits = scheme.number_format.layout == "rowwise"
    compute_dtype = str(layer.compute_dtype or model.dtype).removeprefix("torch.")
    return {
        "quant_method": "bitsandbytes",
        "_load_in_4bit": not in_8_bits,
        "_load_in_8bit": in_8_bits,
        "load_in_4bit": not in_8_bits,
        "load_in_8bit": in_8_bits,
        "bnb_4bit_quant_type": "fp4" if in_8_bits else scheme.format,
        "bnb_4bit_use_double_quant": scheme.double_quant and not in_8_bits,
        "bnb_4bit_compute_dtype": compute_dtype,
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_threshold": layer.int8_threshold,
        "llm_int8_skip_modules": dense,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
    }


def _set_quantization(path: Path, fields: dict[str, Any]) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] = fields
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
