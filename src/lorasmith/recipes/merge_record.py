"""What a merge was measured to keep: lines for people, and what merge.json holds."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lorasmith.data import Batch
from lorasmith.evaluation import Fidelity
from lorasmith.recipes.calibration import Texts
from lorasmith.recipes.merge_methods import Candidate


@dataclass(frozen=True)
class MergeRecord:
    """What a merge was measured to keep, for merge.json and for people."""

    scheme: str
    chosen: str
    least_kept: float
    texts: Texts
    found: Mapping[str, Fidelity]
    candidates: list[Candidate]

    def lines(self) -> Iterator[str]:
        """A line a candidate, the chosen one marked, and the losses."""
        for candidate in self.candidates:
            one = self.found[candidate.name]
            mark = "*" if candidate.name == self.chosen else " "
            yield (
                f"{mark} {candidate.name}: keeps {one.kept:.0%} of the adapter's effect, changes {one.other:.2f} of it "
                f"beside; KL {one.kl:.3g}, same top choice {one.agreement:.1%}{_layers(candidate)}"
            )
        one = self.found[self.chosen]
        if one.other > 1:
            yield "warning: what the merge changes beside the adapter's effect is larger than that effect"
        yield (
            f"loss: base {one.base_loss:.4f}, adapter on base {one.adapted_loss:.4f}, merged {one.merged_loss:.4f} "
            f"over {one.positions:,} positions"
        )

    def to_dict(self) -> dict[str, Any]:
        """What merge.json holds."""
        return {
            "scheme": self.scheme,
            "method": self.chosen,
            "least_kept": self.least_kept,
            "text": self.texts.origin,
            "calibration_tokens": token_count(self.texts.calibration),
            "measured": {name: fidelity.to_dict() for name, fidelity in self.found.items()},
            "layers": {
                candidate.name: {
                    path: {"kept": one.kept, "other": one.other, "to_16bit": candidate.to_16bit.get(path)}
                    for path, one in candidate.kept.items()
                }
                for candidate in self.candidates
            },
        }


def token_count(batches: list[Batch]) -> int:
    """Tokens of batches, without padding."""
    return sum(
        batch.input_ids.numel() if batch.attention_mask is None else int(batch.attention_mask.sum())
        for batch in batches
    )


def _layers(candidate: Candidate) -> str:
    """Medians over the adapted layers, as the end of a candidate's line."""
    if not candidate.kept:
        return ""
    kept = [one.kept for one in candidate.kept.values()]
    told = f"; its layers {statistics.median(kept):.0%} at the median, {min(kept):.0%} at the least"
    if not candidate.to_16bit:
        return told
    distance = statistics.median(candidate.to_16bit.values())
    return f"{told}, {distance:.2f} of plain quantizing's error away from 16 bits"
