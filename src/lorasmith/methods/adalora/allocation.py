"""How ranks are shared out: triplets are scored by smoothed importance, and the least important are set to zero.

An element's importance is |weight x gradient|, smoothed over steps, times its smoothed uncertainty; a triplet's score
is that of its value plus the means over its row of A and its column of B. The budget of ranks falls as a cube.
Source: AdaLoRA, arXiv 2303.10512, sections 3.2 and 3.3.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lorasmith.errors import AttachError
from lorasmith.methods.adalora.config import AdaLoraConfig
from lorasmith.methods.adalora.site import AdaLoraSite
from lorasmith.methods.training_part import TrainingPart

_TENSORS = ("lora_A", "lora_E", "lora_B")


class RankAllocation(TrainingPart):
    """The scores of one adapter's triplets; sites are by path. What is kept is written into config and sites."""

    def __init__(self, config: AdaLoraConfig, sites: Mapping[str, AdaLoraSite]) -> None:
        self.config = config
        self.sites = dict(sites)
        self.start = sum(site.rank for site in self.sites.values())
        self.target = config.target_r * len(self.sites)
        # by path and tensor
        self.importance: dict[str, Tensor] = {}
        self.uncertainty: dict[str, Tensor] = {}

    def penalty(self) -> Tensor | None:
        """orth_reg_weight times the mean over all A and B of |A A^T - I| and |B^T B - I|; the paper squares them."""
        if self.config.orth_reg_weight == 0 or not self.sites:
            return None
        rows: list[Tensor] = [site.lora_A.weight for site in self.sites.values()]
        rows += [site.lora_B.weight.T for site in self.sites.values()]
        norms = [torch.linalg.norm(each @ each.T - torch.eye(each.shape[0]).to(each)) for each in rows]
        # the layers of a model may lie on several devices
        return self.config.orth_reg_weight * torch.stack([norm.to(norms[0].device) for norm in norms]).mean()

    def after_step(self, step: int, total: int | None) -> None:
        """Score and allocate, or hold to the last allocation. Raises AttachError where no number of steps is known."""
        end = self._total(total) - self.config.tfinal
        if step < end:
            self._observe()
            if step > self.config.tinit and step % self.config.deltaT == 0:
                self._allocate(self.budget(step, end))
        elif step == end:
            self._allocate(self.target)
            self.importance, self.uncertainty = {}, {}
        else:
            for site in self.sites.values():
                site.keep(site.kept)

    def budget(self, step: int, end: int) -> int:
        """Ranks that may be left after a step between tinit and end."""
        left = 1 - (step - self.config.tinit) / (end - self.config.tinit)
        return int((self.start - self.target) * left**3 + self.target)

    def check(self, total: int) -> None:
        self.config.check_schedule(self.config.total_step or total)

    def _total(self, total: int | None) -> int:
        if self.config.total_step is None:
            if total is None:
                raise AttachError("total_step=None: AdaLoRA's schedule needs the number of training steps; set it")
            self.config.check_schedule(total)
            self.config.total_step = total
        return self.config.total_step

    @torch.no_grad()
    def _observe(self) -> None:
        first, second = self.config.beta1, self.config.beta2
        for path, site in self.sites.items():
            for name in _TENSORS:
                key, weight = f"{path}.{name}", site.get_parameter(f"{name}.weight")
                if weight.grad is None:
                    raise AttachError(f"{key} has no gradient; allocate between backward() and zero_grad()")
                # f32: products of small factors vanish in 16 bits, and with them all ranks
                now = (weight.float() * weight.grad.float()).abs()
                importance = self.importance.get(key, torch.zeros_like(now))
                uncertainty = self.uncertainty.get(key, torch.zeros_like(now))
                self.importance[key] = first * importance + (1 - first) * now
                distance = (now - self.importance[key]).abs()
                self.uncertainty[key] = second * uncertainty + (1 - second) * distance

    def _allocate(self, budget: int) -> None:
        if not self.importance:
            # a schedule whose first allocation is its last
            self._observe()
        scores = {path: self._scores(path) for path in self.sites}
        surplus = self.start - budget
        if surplus > 0:
            threshold = torch.cat([score.cpu() for score in scores.values()]).kthvalue(surplus).values.item()
            for path, site in self.sites.items():
                site.keep((scores[path] > threshold).tolist())
        self._write_pattern()

    def _scores(self, path: str) -> Tensor:
        a, e, b = (self.importance[f"{path}.{name}"] * self.uncertainty[f"{path}.{name}"] for name in _TENSORS)
        return e.flatten() + (a.mean(1) + b.mean(0))

    def _write_pattern(self) -> None:
        self.config.rank_pattern = {f"{path}.lora_E": site.kept_pattern() for path, site in self.sites.items()}

    def state(self) -> dict[str, Tensor]:
        scores = {f"{key}.importance": value for key, value in self.importance.items()}
        scores |= {f"{key}.uncertainty": value for key, value in self.uncertainty.items()}
        if self.config.total_step is not None:
            scores["total_step"] = torch.tensor(self.config.total_step)
        if self.config.rank_pattern is None:
            return scores
        return scores | {f"{path}.kept": torch.tensor(site.kept, dtype=torch.bool) for path, site in self.sites.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.importance, self.uncertainty = {}, {}
        for key, value in state.items():
            if key == "total_step":
                self.config.total_step = int(value)
                continue
            name, _, kind = key.rpartition(".")
            if kind == "kept":
                self.sites[name].keep(value.tolist())
                continue
            weight = self.sites[name.rpartition(".")[0]].get_parameter(f"{name.rpartition('.')[2]}.weight")
            (self.importance if kind == "importance" else self.uncertainty)[name] = value.to(weight.device)
        if any(key.endswith(".kept") for key in state):
            self._write_pattern()
