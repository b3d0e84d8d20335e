"""README.md of an adapter: what it is, how to load it, and what is known of its making; never what is not.

The front matter is what the hub reads. A page that somebody wrote keeps its text, and of its front matter what is not
the adapter's to say.
"""

import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from lorasmith.atomic import write_text
from lorasmith.attach.content import AdapterContent
from lorasmith.methods import AdapterConfig, PeftType, TaskType
from lorasmith.version import VERSION

CARD = "README.md"
# in front of a page that is written anew each time
_OURS = "<!-- Written by lorasmith with the adapter. Remove this line to keep what you write here. -->"
_FRONT = re.compile(r"\A---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)
# what the hub calls a task, and the class that loads the base with its adapter
_TASKS = {
    TaskType.CAUSAL_LM: ("text-generation", "AutoPeftModelForCausalLM"),
    TaskType.SEQ_CLS: ("text-classification", "AutoPeftModelForSequenceClassification"),
    TaskType.SEQ_2_SEQ_LM: (None, "AutoPeftModelForSeq2SeqLM"),
    TaskType.TOKEN_CLS: ("token-classification", "AutoPeftModelForTokenClassification"),
    TaskType.QUESTION_ANS: ("question-answering", "AutoPeftModelForQuestionAnswering"),
    TaskType.FEATURE_EXTRACTION: ("feature-extraction", "AutoPeftModelForFeatureExtraction"),
}
# fields that the page states in words, or that say nothing of the adapter
_TOLD = {"peft_type", "task_type", "base_model_name_or_path", "inference_mode", "auto_mapping", "revision"}


@dataclass(frozen=True)
class CardFacts:
    """What is known of how an adapter was made; what is empty is left out of the page.

    scores are (metric, before, after) as text.
    """

    data: tuple[str, ...] = ()
    storage: str = ""
    training: str = ""
    scores: tuple[tuple[str, str, str], ...] = ()
    scored_on: str = ""


def write_card(folder: str | Path, content: AdapterContent, facts: CardFacts | None = None, name: str = "") -> None:
    """Write folder's README.md; one that is somebody's own keeps its text, and gets what the hub asks for in front."""
    path = Path(folder) / CARD
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    front, body = split_card(old)
    front |= _front_matter(content.config, front)
    if not body.strip() or _OURS in body:
        body = _page(content, facts or CardFacts(), name or Path(folder).resolve().name)
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    write_text(path, f"---\n{head}---\n{body}")


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """The front matter of a page, empty where it has none that can be read, and the text behind it."""
    found = _FRONT.match(text)
    if found is None:
        return {}, text
    try:
        values = yaml.safe_load(found[1])
    except yaml.YAMLError:
        return {}, text
    return (dict(values), text[found.end() :]) if isinstance(values, Mapping) else ({}, text)


def _front_matter(config: AdapterConfig, old: Mapping[str, Any]) -> dict[str, Any]:
    base = hub_name(config.base_model_name_or_path)
    tags = [config.METHOD.lower().replace("_", "-"), "lorasmith", *([f"base_model:adapter:{base}"] if base else [])]
    kept = old.get("tags") or []
    kept = [kept] if isinstance(kept, str) else [tag for tag in kept if not str(tag).startswith("base_model:adapter:")]
    front: dict[str, Any] = {"library_name": "peft" if is_pefts(config) else "lorasmith"}
    if base:
        front["base_model"] = base
    task = _TASKS.get(config.task_type) if isinstance(config.task_type, TaskType) else None
    if task and task[0] and not old.get("pipeline_tag"):
        front["pipeline_tag"] = task[0]
    return front | {"tags": list(dict.fromkeys([*kept, *tags]))}


def hub_name(base: str | None) -> str | None:
    """base where it is a name that the hub may have, None for a folder of this machine."""
    plain = base is not None and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) and not base.startswith(".")
    return base if plain and not Path(str(base)).exists() else None


def is_pefts(config: AdapterConfig) -> bool:
    """Whether PEFT has the method."""
    return config.METHOD in set(PeftType)


def _page(content: AdapterContent, facts: CardFacts, name: str) -> str:
    parts = [f"\n{_OURS}\n\n# {name}\n", _what(content), _loading(content.config), _settings(content.config)]
    parts += [_making(facts), _versions()]
    return "\n".join(part for part in parts if part)


def _what(content: AdapterContent) -> str:
    config, base = content.config, content.config.base_model_name_or_path
    named = hub_name(base)
    where = f"[{named}](https://huggingface.co/{named})" if named else _local(base)
    size = sum(tensor.numel() for tensor in content.state.values())
    stored = sum(tensor.nbytes for tensor in content.state.values())
    task = f" Its task is {config.task_type}." if config.task_type else ""
    classes = f" Its classes are {', '.join(content.class_names)}." if content.class_names else ""
    return (
        f"An adapter for {where}, made with {config.METHOD} in [lorasmith](https://pypi.org/project/lorasmith/): "
        f"{size:,} parameters in {len(content.state)} tensors, {stored / 2**20:.1f} MiB.{task}{classes}\n"
    )


def _local(base: str | None) -> str:
    return f"a model in a folder named `{Path(base).name}`" if base else "a model whose name was not recorded"


def _loading(config: AdapterConfig) -> str:
    auto = _TASKS[config.task_type][1] if isinstance(config.task_type, TaskType) else "AutoPeftModel"
    place = "path/or/hub-name/of/this"
    if config.base_model_name_or_path is None:
        kind, lines = (
            "PeftModel",
            f'model = PeftModel.from_pretrained(base, "{place}")  # base: the model it belongs to',
        )
    else:
        kind, lines = auto, f'model = {auto}.from_pretrained("{place}")'
    peft = f"\nPEFT loads it by the same lines: `from peft import {kind}`.\n" if is_pefts(config) else ""
    other = "" if is_pefts(config) else "\nPEFT does not have this method.\n"
    return f"## Use\n\n```python\nfrom lorasmith import {kind}\n\n{lines}\n```\n{peft}{other}"


def _settings(config: AdapterConfig) -> str:
    """The fields that are not at their defaults."""
    rows = []
    for each in fields(config):
        value = getattr(config, each.name)
        if each.name not in _TOLD and value != _default(each):
            shown = ", ".join(sorted(map(str, value))) if isinstance(value, list | set | tuple) else str(value)
            rows.append(f"| `{each.name}` | {shown.replace('|', chr(92) + '|')} |")
    return "\n".join(["## Settings\n", "| field | value |", "|---|---|", *rows, ""]) if rows else ""


def _default(field: Field[Any]) -> Any:
    # some configs cannot be made of defaults alone
    return field.default if field.default_factory is MISSING else field.default_factory()


def _making(facts: CardFacts) -> str:
    told = [("Data", ", ".join(facts.data)), ("Base during training", facts.storage), ("Training", facts.training)]
    lines = [f"- {label}: {value}" for label, value in told if value]
    if facts.scores:
        on = f" on {facts.scored_on}" if facts.scored_on else ""
        lines += [f"\nScores{on}, with 95 % intervals:\n", "| metric | base | with the adapter |", "|---|---|---|"]
        lines += [f"| {metric} | {before} | {after} |" for metric, before, after in facts.scores]
    return "\n".join(["## How it was made\n", *lines, ""]) if lines else ""


def _versions() -> str:
    made = {"lorasmith": VERSION, "torch": torch.__version__, "transformers": transformers.__version__}
    return "\n".join(["## Versions\n", *(f"- {library} {version}" for library, version in made.items()), ""])
