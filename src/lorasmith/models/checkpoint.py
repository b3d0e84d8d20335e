"""A model folder, checked from its headers before anything expensive happens."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorasmith.errors import ModelError
from lorasmith.models.tensor_file import StoredTensor, read_header

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# tensor names that only these formats have, for folders whose config does not say it
_FOREIGN_TENSORS = {".qweight": "GPTQ or AWQ", ".qzeros": "GPTQ or AWQ", ".weight_scale_inv": "FP8"}


@dataclass(frozen=True)
class Checkpoint:
    """A model folder whose headers are in order: its config and its tensors, unread."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type that the config names, or that most of the unquantized elements have."""
        named = self.config.get("dtype") or self.config.get("torch_dtype")
        if isinstance(named, str) and isinstance(getattr(torch, named, None), torch.dtype):
            return getattr(torch, named)
        elements: dict[torch.dtype, int] = {}
        for tensor in self.tensors.values():
            if tensor.dtype in (torch.float32, torch.bfloat16, torch.float16):
                elements[tensor.dtype] = elements.get(tensor.dtype, 0) + tensor.nbytes // tensor.dtype.itemsize
        return max(elements, key=lambda dtype: elements[dtype], default=torch.float32)


def open_checkpoint(folder: Path, *, trust_remote_code: bool = False) -> Checkpoint:
    """Check the folder and read its headers.

    Raises ModelError, naming the file, for a missing config, pickled or missing weights, a damaged shard, a foreign
    quantization, or code that trust_remote_code does not allow.
    """
    config = _read_config(folder)
    if not trust_remote_code:
        _refuse_code(folder, config)
    _refuse_foreign(folder, config)
    tensors: dict[str, StoredTensor] = {}
    for path in _shards(folder):
        tensors |= read_header(path)
    _refuse_foreign_tensors(folder, tensors)
    return Checkpoint(folder, config, tensors)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in path; ModelError, naming the file, where it holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__} instead of an object; download it again")
    return value


def _read_config(folder: Path) -> dict[str, Any]:
    if (folder / CONFIG).is_file():
        return read_json(folder / CONFIG)
    if (folder / ADAPTER_CONFIG).is_file():
        base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        raise ModelError(f"{folder} is an adapter, not a model; load its base first (it names {base})")
    raise ModelError(f"{folder} has no {CONFIG}; give a Hugging Face model folder ({CONFIG} and *.safetensors)")


def _refuse_code(folder: Path, config: dict[str, Any]) -> None:
    code = sorted(path.name for path in folder.glob("*.py"))
    if config.get("auto_map") or code:
        what = f"runs code of its own ({', '.join(code) or 'auto_map in ' + CONFIG})"
        raise ModelError(
            f"{folder} {what}; read it, then pass trust_remote_code=True (--trust-remote-code) to allow it"
        )


def _refuse_foreign(folder: Path, config: dict[str, Any]) -> None:
    stored = quantization_of(config)
    if stored is None:
        return
    method = method_of(stored)
    if method not in ("lorasmith", "bitsandbytes"):
        raise ModelError(
            f"{folder / CONFIG}: the weights are stored in {str(method).upper()}, which lorasmith does not read; "
            "use the 16-bit model that it was made from and quantize that"
        )


def quantization_of(config: dict[str, Any]) -> dict[str, Any] | None:
    """The quantization_config of a config.json, at its top or in its text model's part."""
    text = config.get("text_config")
    nested = text.get("quantization_config") if isinstance(text, dict) else None
    return config.get("quantization_config") or nested or None


def method_of(stored: dict[str, Any]) -> str | None:
    """The quant_method of a quantization_config; old bitsandbytes configs do not name theirs."""
    if stored.get("load_in_4bit") or stored.get("load_in_8bit"):
        return "bitsandbytes"
    return stored.get("quant_method")


def _refuse_foreign_tensors(folder: Path, tensors: dict[str, StoredTensor]) -> None:
    for name, tensor in tensors.items():
        kind = next((kind for end, kind in _FOREIGN_TENSORS.items() if name.endswith(end)), None)
        if tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
            kind = "FP8"
        if kind:
            raise ModelError(
                f"{folder}: tensor {name} is stored in {kind}, which lorasmith does not read; "
                "use the 16-bit model that it was made from and quantize that"
            )


def _shards(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        files = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        missing = [name for name in files if not (folder / name).is_file()]
        if missing or not files:
            lack = ", ".join(missing) or "every shard"
            raise ModelError(f"{folder / INDEX} lists shards that are not there: {lack}; download the rest")
        return [folder / name for name in files]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder / pickles[0]} is a pickle file, which can run code when it is read; "
            "lorasmith reads safetensors only: convert it, or take a revision that has them"
        )
    raise ModelError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX}; download them")
