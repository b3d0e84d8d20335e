"""The book of a model's adapters: which there are, which act, which tensors are whose."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from lorasmith.attach.adapted_parameter import AdaptedParameter
from lorasmith.attach.assignment import BASE, Assignment
from lorasmith.attach.base_tensors import BaseTensors
from lorasmith.attach.class_names import ClassNames
from lorasmith.attach.prompted import Prompted
from lorasmith.attach.saved_module import SavedModule
from lorasmith.attach.selection import base_modules
from lorasmith.attach.site_holder import SiteHolder
from lorasmith.errors import AttachError, nearest
from lorasmith.methods import AdapterConfig, Site, SiteMethod, TrainingPart, method_of

# in front of every key of a PEFT file; soft prompts lack PEFT's tuner, and so one step
KEY_PREFIX = "base_model.model."
PROMPT_KEY_PREFIX = "base_model."
# in front of the key of a tensor that an adapter's sites share
SHARED_KEY_PREFIX = "base_model."
PROMPT_KEY = "prompt_embeddings"


class Adapters:
    """All adapters of one model, by name. Tensors are found by identity, never by a piece of their name."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.configs: dict[str, AdapterConfig] = {}
        self.active: list[str] = []
        self.base_tensors = BaseTensors()
        self.class_names = ClassNames(model)
        self.prompted: Prompted | None = None
        self.enabled = True
        # who serves which rows while a block of by_rows lasts
        self.assigned: Assignment | None = None
        self._training_parts: dict[str, TrainingPart | None] = {}

    def adapted(self) -> Iterator[tuple[str, SiteHolder]]:
        """(path, wrapper) of everything adapted, in the model's order; nested wrappers from the outermost in."""
        return ((path, module) for path, module in base_modules(self.model) if isinstance(module, SiteHolder))

    def saved_modules(self) -> Iterator[tuple[str, SavedModule]]:
        """(path, wrapper) of every module that some adapter trains whole."""
        return ((path, module) for path, module in base_modules(self.model) if isinstance(module, SavedModule))

    def sites(self, name: str) -> list[tuple[str, Site]]:
        """(path, site) of one adapter."""
        self.check(name)
        return [(path, module.sites[name]) for path, module in self.adapted() if name in module.sites]

    def check(self, name: str) -> None:
        """Raise AttachError, listing the adapters that there are, unless name is one of them."""
        if name not in self.configs:
            known = ", ".join(self.configs) or "none"
            raise AttachError(f"adapter {name!r} does not exist; there are: {known}.{nearest(name, self.configs)}")

    def activate(self, names: str | list[str], trainable: bool | None = None) -> None:
        """Let these adapters act, and no others; their tensors train unless their config says inference_mode.

        trainable overrules and changes the configs. What was merged in place is unmerged where it is another set.
        """
        chosen = [names] if isinstance(names, str) else list(names)
        for name in chosen:
            self.check(name)
        if len(set(chosen)) < len(chosen):
            raise AttachError(f"{', '.join(chosen)}: an adapter acts once; name each one once")
        prompts = [name for name in chosen if self.configs[name].is_prompt_learning]
        if len(prompts) > 1 or (prompts and len(chosen) > 1):
            raise AttachError(f"{', '.join(chosen)}: a soft prompt acts alone; activate one adapter")
        self.unmerge(unless=chosen)
        self.class_names.move(self.active, chosen)
        self.active = chosen
        for _, adapted in self.adapted():
            adapted.active = chosen
        for _, saved in self.saved_modules():
            saved.active = next((name for name in reversed(chosen) if name in saved.modules_to_save), None)
        if self.prompted is not None:
            self.prompted.active = prompts[0] if prompts else None
        if trainable is not None:
            for name in chosen:
                self.configs[name].inference_mode = not trainable
        self.enable(self.enabled)
        self._set_trainable()

    def _set_trainable(self) -> None:
        for name in self.configs:
            for parameter in self.parameters(name):
                parameter.requires_grad_(False)
        # last, since a tensor of the base can be shared by an active and an idle adapter
        for name in self.active:
            for parameter in self.parameters(name):
                parameter.requires_grad_(not self.configs[name].inference_mode)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The bare base model for as long as the block lasts."""
        before = self.enabled
        self.enable(False)
        try:
            yield
        finally:
            self.enable(before)

    @contextmanager
    def by_rows(self, names: Sequence[str], *, per_token: bool = False, repeats: int = 1) -> Iterator[None]:
        """For as long as the block lasts, names say which adapter serves each row of a batch, BASE for none.

        With per_token they are for the tokens of a batch of one row. Generation may repeat each row `repeats` times.
        The active adapters do not act meanwhile, and train as they did. Where layers are computed again in a backward,
        it belongs into the block. Raises AttachError for unknown names, for adapters that are merged in place, and for
        those that have no rows of their own: soft prompts, and what trains tensors of the base.
        """
        assigned = Assignment(names, per_token=per_token, repeats=repeats)
        self._check_rows(assigned)
        before = self.assigned
        self._assign(assigned)
        try:
            yield
        finally:
            self._assign(before)

    def _check_rows(self, assigned: Assignment) -> None:
        if any(adapted.merged for _, adapted in self.adapted()):
            raise AttachError("adapters are merged in place, so that all rows have them; unmerge first")
        for name in assigned.present:
            if name == BASE:
                continue
            self.check(name)
            if not isinstance(method_of(self.configs[name]), SiteMethod):
                raise AttachError(
                    f"adapter {name!r} ({self.configs[name].METHOD}) acts on no rows of its own; give it its own batch"
                )
            if self.base_tensors.parameters(name):
                raise AttachError(
                    f"adapter {name!r} trains tensors of the base, which all rows share; give it its own batch"
                )

    def _assign(self, assigned: Assignment | None) -> None:
        self.assigned = assigned
        for _, adapted in self.adapted():
            adapted.assigned = assigned
        for _, saved in self.saved_modules():
            saved.assigned = assigned
        self._place_what_has_no_rows()

    def _place_what_has_no_rows(self) -> None:
        """Let base tensors and the prompt of the active adapters act, unless all are off or rows are named."""
        acts = self.enabled and self.assigned is None
        self.base_tensors.place(self.active if acts else [])
        if self.prompted is not None:
            self.prompted.enabled = acts

    def enable(self, enabled: bool) -> None:
        """Switch all adapters on or off; off means the bare base, so what was merged in place is unmerged."""
        if not enabled:
            self.unmerge()
        self.enabled = enabled
        for _, adapted in self.adapted():
            adapted.enabled = enabled
        for _, saved in self.saved_modules():
            saved.enabled = enabled
        self._place_what_has_no_rows()

    def unmerge(self, unless: list[str] | None = None) -> None:
        """Undo merges in place, bit for bit; those of exactly the adapters unless stay."""
        for _, adapted in self.adapted():
            if adapted.merged != unless:
                adapted.unmerge_()

    def originals(self) -> dict[nn.Parameter, Tensor]:
        """The base's tensors that adapters have changed in place, by merges or by training, with their own values."""
        found = {parameter: value for _, adapted in self.adapted() for parameter, value in adapted.unmerged.items()}
        return found | self.base_tensors.originals

    def remove(self, name: str) -> None:
        """Take one adapter off; wrappers that serve no adapter go too. The base tensors get their values back.

        If it alone was active, the first of the others becomes active.
        """
        self.check(name)
        self.unmerge()
        rest = [other for other in self.active if other != name]
        others = [other for other in self.configs if other != name]
        self.activate(rest or others[:1] if name in self.active else rest)
        # from the innermost wrapper out, so that the paths of what follows stay true
        for path, adapted in reversed(list(self.adapted())):
            if name in adapted.sites:
                adapted.remove(name)
            if not adapted.sites:
                self.model.set_submodule(path, adapted.base_layer)
        for path, saved in list(self.saved_modules()):
            if name in saved.modules_to_save:
                saved.remove(name)
            if not saved.modules_to_save:
                self.model.set_submodule(path, saved.original_module)
        if self.prompted is not None and name in self.prompted.encoder:
            del self.prompted.encoder[name]
            if not self.prompted.encoder:
                self.prompted.detach()
                self.prompted = None
        self.base_tensors.remove(name)
        self.class_names.forget(name)
        del self.configs[name]
        self._training_parts.pop(name, None)
        self._place_what_has_no_rows()

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The tensors that belong to one adapter, each once."""
        found: dict[int, nn.Parameter] = {}
        for _, site in self.sites(name):
            found |= {id(p): p for p in site.parameters()}
        for _, saved in self.saved_modules():
            if name in saved.modules_to_save:
                found |= {id(p): p for p in saved.modules_to_save[name].parameters()}
        if self.prompted is not None and name in self.prompted.encoder:
            found |= {id(p): p for p in self.prompted.encoder[name].parameters()}
        found |= {id(p): p for p in self.base_tensors.parameters(name)}
        return list(found.values())

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The adapter's tensors by their keys in a PEFT file: views to save from or to load into.

        Soft prompts and tensors of the base are not among them: these are values, not places.
        """
        found: dict[str, Tensor] = {}
        for site, keys in self.file_sites(name):
            found |= {keys[key]: tensor for key, tensor in site.file_tensors().items()}
        for path, saved in self.saved_modules():
            if name in saved.modules_to_save:
                state = saved.modules_to_save[name].state_dict()
                prefix = PROMPT_KEY_PREFIX if self.configs[name].is_prompt_learning else KEY_PREFIX
                found |= {f"{prefix}{path}.{key}": value for key, value in state.items()}
        return found

    def file_sites(self, name: str) -> Iterator[tuple[Site, dict[str, str]]]:
        """(site, its whole keys in a PEFT file by its keys behind the module's path) of one adapter.

        Sites on parameters are named as they nest in a model that has no other adapter.
        """
        depths: Counter[str] = Counter()
        for path, holder in self.adapted():
            if name not in holder.sites:
                continue
            if isinstance(holder, AdaptedParameter):
                outermost = _without_wrappers(path)
                path = outermost + ".base_layer" * depths[outermost]
                depths[outermost] += 1
            site = holder.sites[name]
            yield site, {key: _file_key(path, key) for key in site.file_tensors()}

    def repeated_keys(self, name: str) -> set[str]:
        """Keys in a PEFT file of tensors that another key holds too, which a file may lack."""
        found = {key for site, keys in self.file_sites(name) if site.partners for key in keys.values()}
        seen: set[int] = set()
        for path, saved in self.saved_modules():
            if name in saved.modules_to_save:
                own = dict(saved.modules_to_save[name].named_parameters())
                found |= {f"{KEY_PREFIX}{path}.{key}" for key, value in own.items() if id(value) in seen}
                seen |= {id(value) for value in own.values()}
        return found

    def exported(self, name: str) -> dict[str, Tensor]:
        """The tensors of one adapter's sites by their keys in a file that any program reads; see `Site.exported`."""
        found: dict[str, Tensor] = {}
        for site, keys in self.file_sites(name):
            found |= {keys[key]: value for key, value in site.exported().items()}
        return found

    def take_exported_(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Take over tensors of one adapter's sites as `exported` gives them."""
        for site, keys in self.file_sites(name):
            site.take_exported_({key: state[whole] for key, whole in keys.items()})

    def saved_tensors(self, name: str) -> dict[str, Tensor]:
        """The adapter's tensors by their keys in a PEFT file, as a file holds them."""
        found = self.tensors(name)
        return found | {whole: site.saved(key, found[whole]) for whole, site, key in self._keyed(name)}

    def restored_tensors(self, name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a file with those of sites as the sites hold them."""
        held = [(whole, site, key) for whole, site, key in self._keyed(name) if whole in state]
        return dict(state) | {whole: site.restored(key, state[whole]) for whole, site, key in held}

    def _keyed(self, name: str) -> Iterator[tuple[str, Site, str]]:
        """(whole key in a PEFT file, site, the site's own key) of every tensor of the adapter's sites."""
        return ((whole, site, key) for site, keys in self.file_sites(name) for key, whole in keys.items())

    def training_parts(self) -> dict[str, TrainingPart]:
        """What the methods of the adapters that train now do during training, by adapter; each is made once."""
        training = [name for name in self.active if self.enabled and not self.configs[name].inference_mode]
        for name in training:
            if name not in self._training_parts:
                self._training_parts[name] = self._new_training_part(name)
        parts = {name: self._training_parts[name] for name in training}
        return {name: part for name, part in parts.items() if part is not None}

    def _new_training_part(self, name: str) -> TrainingPart | None:
        method = method_of(self.configs[name])
        return method.training_part(self.configs[name], self.sites(name)) if isinstance(method, SiteMethod) else None

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """(name, parameter) of everything that trains now."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]


def _without_wrappers(path: str) -> str:
    while path.endswith(".base_layer"):
        path = path.removesuffix(".base_layer")
    return path


def _file_key(path: str, key: str) -> str:
    return f"{SHARED_KEY_PREFIX}{key[1:]}" if key.startswith("/") else f"{KEY_PREFIX}{path}.{key}"


def adapters_of(model: nn.Module) -> Adapters:
    """The book of model's adapters; a model without one gets an empty one."""
    book = model.__dict__.get("adapters_book")
    if not isinstance(book, Adapters):
        book = Adapters(model)
        model.__dict__["adapters_book"] = book
    return book
