"""Generating with the 8B shape in NF4 + LoRA, one row: launched from Python, and replayed as CUDA graphs.

A prompt of 32 tokens, then greedy ones by transformers' generate; rank 16 on all linear layers, active, not merged. A
token's time is that of a long answer less that of one token, over the tokens between. share is of the read rate: the
bytes that a token needs (all parameters but the embedding's table) times tokens a second, over that rate. same says
whether the tokens are those of the first way; a rounding in another place may part two ways at a near tie. On a CPU,
where there are no graphs, a recording is the step itself. --compiled adds the step that transformers compiles, which
takes minutes to make.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import random_llama
import torch
from measuring import Place, command_line, forget, place_of, rates, told, wait
from torch import nn

from lorasmith.decoding import decoding_graphs
from lorasmith.models.fused_block import fused_blocks

RANK, PROMPT, ROUNDS = 16, 32, 3
EAGER, GRAPHS, FUSED, COMPILED = "eager", "CUDA graphs", "CUDA graphs, fused blocks", "transformers, compiled"

Way = Callable[[nn.Module], AbstractContextManager[object]]


class Itself:
    """A recorder whose recording is the step."""

    def record(self, step: Callable[[], Any], again: Callable[[], None]) -> Callable[[], Any]:
        step()
        again()
        return step


def ways(where: Place, compiled: bool) -> Mapping[str, Way]:
    """By name: a block in which the model generates so."""

    def graphs(model: nn.Module) -> AbstractContextManager[object]:
        return decoding_graphs(model, None if where.on_gpu else Itself())

    @contextmanager
    def fused(model: nn.Module) -> Iterator[None]:
        with fused_blocks(model), graphs(model):
            yield

    found: dict[str, Way] = {EAGER: lambda model: nullcontext(), GRAPHS: graphs, FUSED: fused}
    return found | ({COMPILED: lambda model: nullcontext()} if compiled else {})


class Answering:
    """A model that continues one prompt."""

    def __init__(self, model: Any, where: Place, vocabulary: int) -> None:
        self.model, self.where = model, where
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(vocabulary, (1, PROMPT), generator=generator).to(where.device)

    def seconds(self, count: int, **settings: Any) -> tuple[float, list[int]]:
        """How long exactly count tokens take, and which they are."""
        lengths = {"max_new_tokens": count, "min_new_tokens": count}
        wait(self.where.device)
        began = time.perf_counter()
        made = self.model.generate(
            input_ids=self.ids,
            attention_mask=torch.ones_like(self.ids),
            do_sample=False,
            pad_token_id=0,
            **lengths,
            **settings,
        )
        wait(self.where.device)
        return time.perf_counter() - began, made[0, PROMPT:].tolist()

    def measured(self, count: int, **settings: Any) -> tuple[float, list[int]]:
        """The least seconds of one token behind the first, and the tokens of a long answer."""
        # records, tunes, compiles
        _, tokens = self.seconds(count, **settings)
        one = min(self.seconds(1, **settings)[0] for _ in range(ROUNDS))
        many = min(self.seconds(count, **settings)[0] for _ in range(ROUNDS))
        return max(many - one, 1e-9) / (count - 1), tokens


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--compiled", action="store_true", help="transformers' compiled step too")
    given = parser.parse_args()
    where = place_of(given)
    limit = rates(where)["read"]
    forget()
    shape = random_llama.TINY if where.tiny else random_llama.LLAMA_8B
    model = random_llama.adapted(random_llama.ours(shape, where.device), RANK).eval()
    size = sum(one.nbytes for name, one in model.named_parameters() if "embed_tokens" not in name)
    answering, expected = Answering(model, where, shape.vocabulary), None
    for name, way in ways(where, given.compiled).items():
        settings = {"cache_implementation": "static"} if name == COMPILED else {}
        with told("decoding, 1 row", way=name) as row, way(model):
            row["seconds"], tokens = answering.measured(4 if where.tiny else 64, **settings)
            expected = expected or tokens
            row |= {"tokens_per_second": 1 / row["seconds"], "same": tokens == expected}
            row["share"] = size / row["seconds"] / limit


if __name__ == "__main__":
    main()
