"""Trainer, SFTTrainer and DPOTrainer on adapters of PEFT and of lorasmith that start equal.

Run by test_trained_as_in_peft.py, in a process of its own: TRL imports the real peft, and both warn a lot.

Prints one line of JSON: by task, library and storage of the base what a whole run, a resumed one and a reloaded model
say.
"""

import json
import sys
from pathlib import Path
from typing import Any

import peft
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import lorasmith
from lorasmith.attach import make_dense

out = Path(sys.argv[1])
LIBRARIES = {"peft": peft, "lorasmith": lorasmith}
KINDS = {"trainer": (Trainer, TrainingArguments), "sft": (SFTTrainer, SFTConfig), "dpo": (DPOTrainer, DPOConfig)}

symbols = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
letters = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(symbols)}, merges=[]))
letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
letters.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="<pad>", eos_token="</s>")

sums = [(f"{a} + {b} =", f" {a + b}", f" {a + b + 1}") for a in range(1, 5) for b in range(2, 6)]
lines = [tokenizer(f"{question}{right}").input_ids[:9] for question, right, _ in sums]
ROWS = {
    "trainer": [{"input_ids": line, "labels": line, "unused": "a column to drop"} for line in lines],
    "sft": [{"prompt": question, "completion": right} for question, right, _ in sums],
    "dpo": [{"prompt": question, "chosen": right, "rejected": wrong} for question, right, wrong in sums],
}

# how many base models were made so far
made = 0
initialise = LlamaForCausalLM.__init__


def counting(self: LlamaForCausalLM, *args: Any, **kwargs: Any) -> None:
    global made
    made += 1
    initialise(self, *args, **kwargs)


LlamaForCausalLM.__init__ = counting  # type: ignore[method-assign]


def prepare() -> None:
    """Write the base, what NF4 makes of it as dense weights, and adapters whose B is not zero."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(symbols), **sizes, **special)).save_pretrained(out / "dense")
    rounded = AutoModelForCausalLM.from_pretrained(out / "dense", quantization_config=lorasmith.QuantizationConfig())
    make_dense(rounded)
    rounded.save_pretrained(out / "rounded")
    fields = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    model = lorasmith.get_peft_model(
        AutoModelForCausalLM.from_pretrained(out / "dense"), lorasmith.LoraConfig(**fields)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    model.save_pretrained(out / "start")


def base_model(library: str, storage: str) -> Any:
    """A fresh base; PEFT gets NF4's values as dense weights, since its own 4-bit layers need another library."""
    if storage == "nf4" and library == "lorasmith":
        return AutoModelForCausalLM.from_pretrained(out / "dense", quantization_config=lorasmith.QuantizationConfig())
    return AutoModelForCausalLM.from_pretrained(out / ("rounded" if storage == "nf4" else "dense"))


def trainer_of(task: str, model: Any, folder: Path, **more: Any) -> Any:
    settings = {
        "output_dir": str(folder),
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
    }
    trainer, arguments = KINDS[task]
    if task == "trainer":
        more["data_collator"] = default_data_collator
    data = Dataset.from_list(ROWS[task])
    return trainer(model=model, args=arguments(**settings), train_dataset=data, processing_class=tokenizer, **more)


def losses(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def says(model: Any) -> list[float]:
    """A few logits of the active adapter."""
    ids = tokenizer("1 + 2 = 3", return_tensors="pt").input_ids
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits[0, -1, :8].tolist()


def run(task: str, library: str, storage: str) -> dict[str, Any]:
    names = LIBRARIES[library]
    folder = out / f"{task}-{library}-{storage}"
    start = names.PeftModel.from_pretrained(base_model(library, storage), out / "start", is_trainable=True)
    before, bases = says(start), made
    trainer = trainer_of(task, start, folder / "whole")
    trainer.train()
    told = {"losses": losses(trainer), "bases": made - bases, "kind": type(trainer.model).__module__.split(".")[0]}
    told |= {"before": before, "trained": says(trainer.model), "files": sorted_names(folder / "whole" / "checkpoint-4")}
    if library == "peft":
        return told
    told["dtypes"] = sorted({str(p.dtype) for p in trainer.model.parameters() if p.requires_grad})
    if task == "dpo":
        trainer.model.set_adapter("ref")
        told["reference"] = says(trainer.model)
    again = names.PeftModel.from_pretrained(base_model(library, storage), folder / "whole" / "checkpoint-4")
    told["reloaded"] = says(again)
    fresh = names.PeftModel.from_pretrained(base_model(library, storage), out / "start", is_trainable=True)
    resumed = trainer_of(task, fresh, folder / "resumed")
    resumed.train(resume_from_checkpoint=str(folder / "whole" / "checkpoint-2"))
    return told | {"resumed": losses(resumed), "resumed_says": says(resumed.model)}


def sorted_names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))


def refusal(task: str, model: Any, **more: Any) -> str:
    """What TRL says to what it cannot train."""
    try:
        trainer_of(task, model, out / "refused", **more)
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


prepare()
told: dict[str, Any] = {
    task: {f"{library} {storage}": run(task, library, storage) for library in LIBRARIES for storage in ("dense", "nf4")}
    for task in KINDS
}
for task in ("sft", "dpo"):
    told[task]["config"] = refusal(task, base_model("lorasmith", "dense"), peft_config=lorasmith.LoraConfig())
    head = lorasmith.LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM")
    told[task]["head"] = refusal(task, lorasmith.get_peft_model(base_model("lorasmith", "dense"), head))
print(json.dumps(told))
