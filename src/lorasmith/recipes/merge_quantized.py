"""Merging an adapter into a number format: in the best of several ways, measured, or refused."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorasmith.atomic import new_folder, write_text
from lorasmith.attach import adapters_of, load_adapter, replace_and_unload, replaced, require_mergeable
from lorasmith.data import Batch
from lorasmith.doctor.place.folder import require_writable
from lorasmith.errors import AdapterError, MergeError
from lorasmith.evaluation import Fidelity, merge_fidelity, scored_logits
from lorasmith.evaluation.evaluating import evaluating
from lorasmith.json_text import json_text
from lorasmith.methods import layer_spec
from lorasmith.models.checkpoint import Checkpoint, quantization_of
from lorasmith.models.save import save_quantized
from lorasmith.quantized import QuantizedLinear, Scheme
from lorasmith.recipes.adapter_fit import fitting_config
from lorasmith.recipes.base_model import Storage, load_base, open_base, skeleton
from lorasmith.recipes.calibration import batched, read_examples
from lorasmith.recipes.inspection import inspection_lines
from lorasmith.recipes.merge_methods import Candidate, MergeMethod, MergePlan, build_candidates, width_of
from lorasmith.recipes.merge_record import MergeRecord, token_count
from lorasmith.recipes.sections import ModelSection
from lorasmith.recipes.source_weights import SourceWeights
from lorasmith.recipes.subject import Subject, find_subject, tokenizer_of

RECORD = "merge.json"
# share of the adapter's effect on the logits that a merge must keep
LEAST_KEPT = 0.8


@dataclass(frozen=True)
class MergeRequest:
    """What to merge into which format: a run or adapter folder, and what must be left of the adapter.

    method is one of merge_methods', or auto: all that the base allows, and the one whose output is nearest to the
    adapter's on its base. calibration is a data file; without one the run's own data, or a default text. base_16bit
    is the model that a quantized base was made from. least_kept is the share of the adapter's effect on the logits
    below which the merge is refused, unless force. Raises MergeError for a share outside 0 to 1.
    """

    adapter: str
    out: Path
    into: str
    method: MergeMethod = "auto"
    base: str | None = None
    base_16bit: str | None = None
    calibration: str | None = None
    least_kept: float = LEAST_KEPT
    force: bool = False
    device: str = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.least_kept <= 1:
            raise MergeError(f"--least-kept {self.least_kept:g} is a share and must lie in [0, 1], such as 0.8")


def merge_quantized(request: MergeRequest) -> Iterator[str]:
    """Writes a quantized checkpoint with the adapter merged in and merge.json beside it; yields lines on what was done.

    Raises MergeError where less than least_kept of the adapter would be left, with the numbers and what else to do, and
    for a method that the base does not allow; AdapterError, InputError and WriteError as merge_adapter does.
    """
    out = new_folder(request.out)
    scheme = Scheme(request.into)
    subject = find_subject(request.adapter, base=request.base, trust_remote_code=request.trust_remote_code)
    if not subject.adapters:
        raise AdapterError(f"{request.adapter} is no adapter and no run; name the folder of one, the base with --model")
    checkpoint = open_base(subject.base)
    tokenizer = tokenizer_of(subject, checkpoint)
    name, folder = next(iter(subject.adapters.items()))
    config = fitting_config(folder, checkpoint)
    source = _source(request, subject, checkpoint)
    examples = read_examples(request.calibration, subject, checkpoint, tokenizer)
    require_writable(out)
    model = load_base(subject.base, subject.storage, request.device).model
    load_adapter(model, folder, name, config=config)
    require_mergeable(model, [name])
    model.eval()
    plan = _plan(model, name, scheme, source)
    names = plan.names(request.method)
    widest = max(width_of(model.get_submodule(path)) for path in plan.paths)
    texts = batched(examples, checkpoint, tokenizer, widest).to(model.device)
    yield f"calibrating on {token_count(texts.calibration):,} tokens of {texts.origin}, measuring on others"
    candidates = build_candidates(plan, names, texts.calibration, texts.measured)
    found = measured_candidates(plan, candidates, texts.measured)
    chosen = min(candidates, key=lambda one: found[one.name].kl)
    record = MergeRecord(str(plan.scheme), chosen.name, request.least_kept, texts, found, candidates)
    yield from record.lines()
    _require_kept(request, chosen.name, found, plan)
    merged = replace_and_unload(model, chosen.layers, [name])
    assert isinstance(merged, PreTrainedModel)
    save_quantized(merged, tokenizer, out)
    write_text(out / RECORD, json_text(record.to_dict(), indent=1) + "\n")
    yield from inspection_lines(str(out))


def measured_candidates(plan: MergePlan, candidates: list[Candidate], batches: list[Batch]) -> dict[str, Fidelity]:
    """How each candidate stands beside the adapter on its base, by name."""
    model, book = plan.model, adapters_of(plan.model)

    def voice(context: Callable[[], Any]) -> Callable[[Batch], tuple[Tensor, Tensor]]:
        def speak(batch: Batch) -> tuple[Tensor, Tensor]:
            with context():
                return scored_logits(model, batch)

        return speak

    voices = {one.name: voice(partial(replaced, model, one.layers)) for one in candidates}
    with evaluating(model):
        return merge_fidelity(voice(book.disabled), voice(nullcontext), voices, batches)


def _plan(model: PreTrainedModel, name: str, scheme: Scheme, source: SourceWeights | None) -> MergePlan:
    quantized = {path: layer for path, layer in _base_layers(model) if isinstance(layer, QuantizedLinear)}
    if quantized:
        found = next(iter(quantized.values())).scheme
        if found.format == scheme.format:
            scheme = found
        return MergePlan(model, name, list(quantized), scheme, source)
    if source is None:
        raise MergeError("no layer of the base is stored quantized, though its config.json says so; name a dense base")
    return MergePlan(model, name, [path for path in source.layers if path not in source.dense], scheme, None)


def _source(request: MergeRequest, subject: Subject, checkpoint: Checkpoint) -> SourceWeights | None:
    """The 16-bit weights of the base: its own, or those that a quantized one was made from, if they are at hand."""
    section, dense = subject.base, Storage(subject.storage.task, None, subject.storage.labels)
    stored = quantization_of(checkpoint.config) is not None
    if request.base_16bit is None:
        return None if stored else _weights(checkpoint, section, dense)
    if not stored and subject.storage.quantization is None:
        raise MergeError(f"--base-16bit {request.base_16bit}: {section.path} is not quantized itself; leave it out")
    named = section.model_copy(update={"path": request.base_16bit})
    source = _weights(open_base(named), named, dense)
    _require_same_shapes(source, skeleton(checkpoint, section, subject.storage, torch.device("cpu")), request)
    return source


def _weights(checkpoint: Checkpoint, section: ModelSection, dense: Storage) -> SourceWeights:
    return SourceWeights(checkpoint, skeleton(checkpoint, section, dense, torch.device("cpu")))


def _require_same_shapes(source: SourceWeights, base: PreTrainedModel, request: MergeRequest) -> None:
    """Raise MergeError where a quantized layer of base is another than the source's."""
    for path, layer in base.named_modules():
        if isinstance(layer, QuantizedLinear):
            wanted, found = layer_spec(layer), layer_spec(source.layers[path]) if path in source.layers else None
            assert wanted is not None
            sizes = "no such layer" if found is None else f"{found.out_features} x {found.in_features}"
            if sizes != f"{wanted.out_features} x {wanted.in_features}":
                raise MergeError(
                    f"--base-16bit {request.base_16bit} is another model: {path} is {wanted.out_features} x "
                    f"{wanted.in_features} in the quantized base and {sizes} there; name the one that it was made from"
                )


def _base_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        yield path.removesuffix(".base_layer"), module


def _require_kept(request: MergeRequest, chosen: str, found: Mapping[str, Fidelity], plan: MergePlan) -> None:
    one = found[chosen]
    if one.kept >= request.least_kept or request.force:
        return
    others = [name for name in plan.names("auto") if name not in found]
    more = f"; --method auto tries {', '.join(others)} too" if others else ""
    bits = "" if plan.source or not plan.quantized else "; --base-16bit names the model that the base was made from"
    raise MergeError(
        f"{request.into} by {chosen} keeps {one.kept:.0%} of the adapter's effect on the logits, less than "
        f"--least-kept {request.least_kept:g} (other change {one.other:.2f}, KL {one.kl:.3g}); keep the adapter beside "
        f"its base, merge --into bf16 or int8{bits}{more}, or write it all the same with --force"
    )
