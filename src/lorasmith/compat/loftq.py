"""`replace_lora_weights_loftq`: LoRA on a base that is quantized already makes up for what quantizing lost.

A, B become the best s B A = W - Q of their rank, W read from the dense checkpoint, Q what the base holds: LoftQ's one
step, for a base that stays as it is. Source: LoftQ, arXiv 2310.08659, section 3.2.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorasmith.attach import adapters_of
from lorasmith.compat.peft_model import bare_model
from lorasmith.errors import AttachError, ModelError
from lorasmith.methods.inits.truncated import balanced_factors
from lorasmith.methods.lora.linear import LoraLinear
from lorasmith.models.checkpoint import open_checkpoint
from lorasmith.models.hub import Source, fetch
from lorasmith.models.tensor_file import StoredTensor, read_header
from lorasmith.quantized import QuantizedLinear

Keeps = Callable[[Any, str], bool]


@torch.no_grad()
def replace_lora_weights_loftq(
    peft_model: nn.Module,
    model_path: str | Path | None = None,
    adapter_name: str = "default",
    callback: Keeps | None = None,
) -> None:
    """Give the adapter's layers on quantized linear layers the factors that make up best for what quantizing lost.

    model_path is the folder or the safetensors file of the dense model, by default where the base came from. callback
    is called with peft_model and the layer's name after each replacement, which is undone where it returns False. Any
    format will do, and the factors are divided by the adapter's scaling. Raises AttachError where no layer is quantized
    and has a plain LoRA, ModelError for a weight that the file lacks or has in another shape.
    """
    model = bare_model(peft_model)
    book = adapters_of(model)
    book.check(adapter_name)
    tensors = _dense_tensors(model, model_path)
    found = [(path, adapted.base_layer, adapted.sites.get(adapter_name)) for path, adapted in book.adapted()]
    served = [(path, q, s) for path, q, s in found if isinstance(q, QuantizedLinear) and isinstance(s, LoraLinear)]
    if not served:
        raise AttachError(
            f"adapter {adapter_name!r} is no plain LoRA on quantized linear layers; on a dense base attach one with "
            'init_lora_weights="loftq"'
        )
    for path, layer, site in served:
        held = layer.dequantize(torch.float32)
        rest = _weight(tensors, path, getattr(model, "base_model_prefix", ""), held).to(held) - held
        before = (site.lora_A.weight.clone(), site.lora_B.weight.clone())
        _put(site, balanced_factors(rest, site.rank, site.scaling))
        if callback is not None and not callback(peft_model, path):
            _put(site, before)


def _put(site: LoraLinear, factors: tuple[Tensor, Tensor]) -> None:
    site.lora_A.weight.copy_(factors[0])
    site.lora_B.weight.copy_(factors[1])


def _dense_tensors(model: nn.Module, path: str | Path | None) -> Mapping[str, StoredTensor]:
    place = path or getattr(model, "name_or_path", None)
    if not place:
        raise ModelError("model_path=None: the model does not say where it came from; name the folder of the dense one")
    if Path(place).is_file():
        return read_header(Path(place))
    return open_checkpoint(fetch(Source(place, offline=True))).tensors


def _weight(tensors: Mapping[str, StoredTensor], path: str, prefix: str, held: Tensor) -> Tensor:
    """The dense weight of the layer at path, [out, in] like what is held."""
    names = (f"{path}.weight", f"{path}.weight".removeprefix(f"{prefix}."))
    stored = next((tensors[name] for name in names if name in tensors), None)
    if stored is None or not stored.is_floating_point():
        raise ModelError(f"{names[0]} is not in the dense model, or quantized there; name the folder it was made from")
    if sorted(stored.shape) != sorted(held.shape):
        raise ModelError(f"{stored.name} has shape {list(stored.shape)}, the layer holds {list(held.shape)}")
    weight = stored.read().to(held)
    # GPT-2's layers are stored the other way round; of a square one the way that is nearer to what is held
    ways = [way for way in (weight, weight.T) if way.shape == held.shape]
    return min(ways, key=lambda way: float((way - held).norm()))
