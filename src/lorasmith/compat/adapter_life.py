"""What can be done with the adapters of a wrapped model: switching, adding, merging, asking what there is."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lorasmith.attach import (
    Adapters,
    Composition,
    MajoritySign,
    TunerLayerStatus,
    TunerModelStatus,
    adapters_of,
    add_weighted,
    attach,
    layer_status,
    merge_and_unload,
    merge_in_place,
    model_status,
    unload,
    unmerge,
)
from lorasmith.compat.adapted_base import AdaptedBase
from lorasmith.compat.base_name import with_base_name
from lorasmith.errors import AttachError
from lorasmith.methods import AdapterConfig
from lorasmith.quantized import count_parameters


class AdapterLife(nn.Module):
    """The half of PeftModel that is about living adapters; the other half is about files."""

    base_model: AdaptedBase

    # --- what stands where

    def get_base_model(self) -> Any:
        """The model inside, adapters and all."""
        return self.base_model.model

    @property
    def adapters(self) -> Adapters:
        """The book of the adapters."""
        return adapters_of(self.base_model.model)

    @property
    def peft_config(self) -> dict[str, AdapterConfig]:
        """Configs by adapter."""
        return self.adapters.configs

    @property
    def active_adapters(self) -> list[str]:
        """Names of the adapters that act."""
        return list(self.adapters.active)

    @property
    def active_adapter(self) -> str:
        """Name of the adapter that acts (the first, of several)."""
        if not self.adapters.active:
            raise AttachError("no adapter is active; choose one with set_adapter")
        return self.adapters.active[0]

    @property
    def active_peft_config(self) -> AdapterConfig:
        """Config of the active adapter."""
        return self.peft_config[self.active_adapter]

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trainable, all) parameters, counted as elements of the dense weights."""
        count = count_parameters(self)
        return count.trainable, count.total

    def print_trainable_parameters(self) -> None:
        """Print how many parameters train, in PEFT's words."""
        trainable, total = self.get_nb_trainable_parameters()
        share = 100 * trainable / total
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}")

    @property
    def modules_to_save(self) -> set[str] | None:
        """Names of the modules that some adapter trains whole."""
        names = {name for config in self.peft_config.values() for name in config.modules_to_save or []}
        return names or None

    @property
    def has_active_enabled_adapter(self) -> bool:
        """Whether an adapter acts now."""
        return self.adapters.enabled and bool(self.adapters.active)

    @property
    def base_model_torch_dtype(self) -> torch.dtype | None:
        """The type that the base model says it has."""
        return getattr(self.get_base_model(), "dtype", None)

    def get_layer_status(self) -> list[TunerLayerStatus]:
        """The status of every adapted module; AttachError where there is none."""
        return layer_status(self.get_base_model(), "model.")

    def get_model_status(self) -> TunerModelStatus:
        """The status of all adapters together; AttachError where no module is adapted."""
        return model_status(self.get_base_model(), type(self.base_model).__name__)

    # --- living with adapters

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Let one adapter (or several) act, and train unless inference_mode."""
        self.adapters.activate(adapter_name, trainable=not inference_mode)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Let the tensors of some adapters train, or not, whether these act or do not."""
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            for parameter in self.adapters.parameters(name):
                parameter.requires_grad_(requires_grad)

    def add_adapter(
        self,
        adapter_name: str,
        peft_config: AdapterConfig,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """Attach one more adapter; the active ones stay active.

        autocast_adapter_dtype keeps it in float32 beside 16-bit weights. low_cpu_mem_usage changes nothing: its tensors
        are made once, in place.
        """
        before = self.active_adapters
        config = with_base_name(peft_config, self.get_base_model())
        attach(self.get_base_model(), config, adapter_name, autocast_adapter_dtype)
        self.adapters.activate(before or adapter_name)

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str | None = None,
        svd_rank: int | None = None,
        svd_clamp: float | None = None,
        svd_full_matrices: bool = True,
        svd_driver: str | None = None,
        density: float | None = None,
        majority_sign_method: MajoritySign = "total",
        seed: int = 0,
    ) -> None:
        """Add an adapter that is the weighted sum of others; the active ones stay active.

        combination_type is one of PEFT's (default: "svd" for LoRA, the sum of the vectors for IA3); seed decides what
        DARE drops. svd_full_matrices changes nothing: the columns that it adds have no part in the result.
        """
        composition = Composition(
            combination_type, svd_rank, svd_clamp, svd_driver, density, majority_sign_method, seed
        )
        add_weighted(self.get_base_model(), adapters, weights, adapter_name, composition)

    def delete_adapter(self, adapter_name: str | list[str]) -> None:
        """Remove one adapter, or several."""
        for name in [adapter_name] if isinstance(adapter_name, str) else adapter_name:
            self.adapters.remove(name)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The bare base model for as long as the block lasts."""
        with self.adapters.disabled():
            yield

    def enable_adapters(self) -> None:
        """Switch the adapters on."""
        self.adapters.enable(True)

    def disable_adapters(self) -> None:
        """Switch the adapters off."""
        self.adapters.enable(False)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge into a dense base in place; unmerge_adapter restores every bit."""
        merge_in_place(self.get_base_model(), adapter_names)

    def unmerge_adapter(self) -> None:
        """Undo merge_adapter."""
        unmerge(self.get_base_model())

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
        dtype: torch.dtype | None = None,
    ) -> nn.Module:
        """The dense model with the active adapters merged; a quantized base becomes dense, never requantized."""
        return merge_and_unload(self.get_base_model(), adapter_names, dtype)

    def unload(self) -> nn.Module:
        """The base model without adapters."""
        return unload(self.get_base_model())

    def update_and_allocate(self, global_step: int) -> None:
        """Share out AdaLoRA's ranks after step global_step, between backward and zero_grad."""
        self.base_model.update_and_allocate(global_step)
