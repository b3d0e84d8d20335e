"""CUDA graphs for decoding: while a block runs, generate replays its steps instead of launching them one by one.

A decode step of a large model is some hundreds of small launches, which take Python longer than the GPU. Here a step is
recorded once for each kind (rows, length of the cache, what acts) and replayed for every further token: inputs are
copied into its buffers, the cache lies in memory that stays (cache_buffers.py), outputs are copied out. Prompts run as
they always did, sampling stays outside. What cannot be recorded decodes as before, after one warning that says why.
"""

import logging
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from lorasmith.attach import adapters_of
from lorasmith.attach.site_holder import SiteHolder
from lorasmith.decoding import cache_buffers, call, standing
from lorasmith.decoding.cache_buffers import CacheBuffers, Layout
from lorasmith.decoding.recorder import CudaGraphs, NotRecordable, Recorder
from lorasmith.decoding.standing import Weights
from lorasmith.decoding.step import Inputs, RecordedStep
from lorasmith.errors import DeviceError, ModelError

logger = logging.getLogger(__name__)

# a long cache is as large as its steps are few; adapters take turns
_MOST_CACHES, _MOST_ACTING = 2, 8
_HELD = "decoding_graphs"


@dataclass(frozen=True)
class Kind:
    """What steps have in common that one recording serves: the buffers of the cache, by id, and all else."""

    buffers: int
    rest: Hashable


Steps = dict[Kind, RecordedStep | str]
"""The recorded step of a kind, or why there is none."""


@contextmanager
def decoding_graphs(model: nn.Module, recorder: Recorder | None = None) -> Iterator[None]:
    """While the block runs, model.generate replays each decode step as one CUDA graph.

    model is a transformers model or a PeftModel around one; recorder stands in for CUDA graphs. Calls of generate take
    a static cache and none of transformers' compiling, unless they ask for a cache or a way of generating themselves.
    Adapters may be switched, merged and changed between calls, and switched and merged within one: steps belong to
    what acted and to the weights as they were, and are recorded anew where these differ. Results are the model's own
    but for the order of sums in attention over the longer cache.
    Raises ModelError for a model that generates nothing, DeviceError for one that is on no CUDA GPU.
    """
    inner: Any = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if inner is None or not inner.can_generate():
        raise ModelError(f"{type(model).__name__} generates no text; load a causal language model")
    if recorder is None:
        device = next(inner.parameters()).device
        require_cuda(device)
        recorder = CudaGraphs(device)
    held = vars(inner)
    if _HELD in held:
        # a block within a block: the outer one's recordings serve
        yield
        return
    own = {name: value for name, value in held.items() if name in ("forward", "generate")}
    graphs = _DecodingGraphs(inner, recorder)
    # on the instance: its class, and all other models, stay as they are
    held.update(graphs.wrapped(), **{_HELD: graphs})
    try:
        yield
    finally:
        del held["forward"], held["generate"], held[_HELD]
        held.update(own)


def require_cuda(device: torch.device) -> None:
    """Raise DeviceError unless device is a CUDA GPU."""
    if device.type != "cuda":
        raise DeviceError(f"CUDA graphs need a CUDA GPU, and this model runs on {device.type}; leave them out")


class _DecodingGraphs:
    """The recorded steps of one model."""

    def __init__(self, model: Any, recorder: Recorder) -> None:
        self.model, self.recorder = model, recorder
        self.book, self.device = adapters_of(model), model.device
        self.forward, self.generate = model.forward, model.generate
        self._caches: OrderedDict[Layout, CacheBuffers] = OrderedDict()
        self._steps: OrderedDict[Hashable, Steps] = OrderedDict()
        self._now: Steps = {}
        self._weights: Weights | None = None
        self._holders: list[SiteHolder] = []
        self._glimpsed: Sequence[object] = ()
        self._in_use: CacheBuffers | None = None
        self._last_kind: Kind | None = None
        # why nothing is recorded: at all, and of what acts now
        self._off: str | None = None
        self._obstacle: str | None = None
        # within a call of generate: one that runs as it always did, or one that has looked
        self._idle = self._generating = False
        self._told: set[str] = set()

    def wrapped(self) -> dict[str, Any]:
        """forward and generate, with the signatures of model's own, which transformers reads."""

        @wraps(self.forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._forward(args, kwargs)

        @wraps(self.generate)
        def generate(*args: Any, **kwargs: Any) -> Any:
            return self._generate(args, kwargs)

        return {"forward": forward, "generate": generate}

    def _generate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = self._idle, self._generating
        try:
            self._check_call(args, kwargs)
            self._idle, self._generating, kwargs = False, True, call.settled(kwargs)
        except NotRecordable as obstacle:
            self._tell(str(obstacle))
            self._idle = True
        try:
            return self.generate(*args, **kwargs)
        finally:
            self._idle, self._generating = before

    def _check_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._off is not None:
            raise NotRecordable(self._off)
        self._look()
        if self._obstacle is not None:
            raise NotRecordable(self._obstacle)
        call.check(self.model, args, kwargs)

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cache, ids = kwargs.get("past_key_values"), kwargs.get("input_ids")
        if self._idle or self._off is not None or torch.is_grad_enabled() or args:
            return self.forward(*args, **kwargs)
        if not isinstance(cache, Cache) or not isinstance(ids, Tensor):
            return self.forward(**kwargs)
        if ids.shape[1] > 1 or not cache_buffers.begun(cache):
            output = self.forward(**kwargs)
            self._receive(cache)
            return output
        try:
            return self._step(cache, kwargs)
        except NotRecordable as obstacle:
            self._tell(str(obstacle))
            return self.forward(**kwargs)

    def _receive(self, cache: Cache) -> None:
        """Take in what a prompt left behind, before the masks of the steps are made for it."""
        # generate has looked where it began
        if not self._generating or self._glimpse() != self._glimpsed:
            self._look()
        self._last_kind = None
        # the first step says what the obstacle is
        with suppress(NotRecordable):
            if self._obstacle is None and cache_buffers.begun(cache):
                self._buffers(cache, roomy=True)

    def _step(self, cache: Cache, kwargs: dict[str, Any]) -> Any:
        """The output of a recorded step; it is recorded if it is the first of its kind."""
        if self._weights is None or self._glimpse() != self._glimpsed:
            self._look()
        if self._obstacle is not None:
            raise NotRecordable(self._obstacle)
        buffers = self._buffers(cache, roomy=False)
        inputs = Inputs(kwargs)
        kind = Kind(id(buffers), (inputs.kind, torch.is_inference_mode_enabled(), *_autocast(self.device)))
        if kind not in self._now:
            self._now[kind] = self._recorded(kind, kwargs, buffers)
        self._last_kind, found = kind, self._now[kind]
        if isinstance(found, str):
            raise NotRecordable(found)
        return found.play(inputs)

    def _recorded(self, kind: "Kind", kwargs: dict[str, Any], buffers: CacheBuffers) -> RecordedStep | str:
        if self._last_kind is not None and self._last_kind.buffers == kind.buffers:
            # each would be recorded, and played once
            self._off = "the inputs of its steps change their form from one to the next"
            return self._off
        try:
            return RecordedStep(self.forward, kwargs, buffers, self.recorder)
        except NotRecordable as obstacle:
            return str(obstacle)

    def _buffers(self, cache: Cache, *, roomy: bool) -> CacheBuffers:
        """The buffers that cache lies in, moved there if it was not."""
        cache_buffers.check(cache)
        if self._in_use is not None and self._in_use.serves(cache):
            return self._in_use
        layout = cache_buffers.layout(cache, roomy=roomy)
        if layout not in self._caches:
            self._caches[layout] = CacheBuffers(cache, layout)
            if len(self._caches) > _MOST_CACHES:
                self._drop(self._caches.popitem(last=False)[1])
        self._caches.move_to_end(layout)
        self._in_use = self._caches[layout]
        self._in_use.lend(cache)
        return self._in_use

    def _drop(self, buffers: CacheBuffers) -> None:
        for steps in self._steps.values():
            for kind in [kind for kind in steps if kind.buffers == id(buffers)]:
                del steps[kind]

    def _look(self) -> None:
        """Find the steps of what acts now; none, where weights are not what they were."""
        modules = standing.parts(self.model)
        if self._weights is None or not self._weights.hold(modules):
            self._steps.clear()
            self._weights = Weights(modules)
        self._holders = [module for module in modules if isinstance(module, SiteHolder)]
        self._glimpsed, self._obstacle, self._last_kind = self._glimpse(), None, None
        try:
            standing.check(self.model, self.book, modules, self.device)
        except NotRecordable as obstacle:
            self._obstacle = str(obstacle)
        acting = standing.acting(self.model, self.book, modules)
        self._now = self._steps.setdefault(acting, {})
        self._steps.move_to_end(acting)
        if len(self._steps) > _MOST_ACTING:
            self._steps.popitem(last=False)

    def _glimpse(self) -> Sequence[object]:
        """What of the adapters may change within a call, quickly read."""
        merged = [holder.merged for holder in self._holders]
        return self.book.active, self.book.enabled, self.book.assigned, merged

    def _tell(self, obstacle: str) -> None:
        if obstacle not in self._told:
            self._told.add(obstacle)
            logger.warning("%s decodes without CUDA graphs: %s", type(self.model).__name__, obstacle)


def _autocast(device: torch.device) -> tuple[object, ...]:
    enabled = torch.is_autocast_enabled(device.type)
    return enabled, torch.get_autocast_dtype(device.type) if enabled else None
