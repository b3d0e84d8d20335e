"""The classic PEFT script with its import changed; run by test_trainer.py with peft present and absent.

Prints one line of JSON: the losses of a whole run and of one resumed half-way, and what a checkpoint holds.
"""

import json
import sys
from pathlib import Path

out, peft = Path(sys.argv[1]), sys.argv[2]
if peft == "absent":
    sys.modules["peft"] = None  # type: ignore[assignment]

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from lorasmith import (  # noqa: E402
    LoraConfig,
    QuantizationConfig,
    get_peft_model,
    prepare_model_for_int8_training,
)

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **sizes)).save_pretrained(out / "base")
rows = [torch.randint(64, (12,)).tolist() for _ in range(32)]
data = Dataset.from_list(
    [{"input_ids": row, "labels": row, "unused": "a column that Trainer must drop"} for row in rows]
)

config = LoraConfig(
    r=8,
    lora_alpha=16,
    target_modules=["q_proj", "v_proj"],
    lora_dropout=0.05,
    bias="none",
    task_type="CAUSAL_LM",
)


def train(folder: Path, resume: str | None) -> list[float]:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(out / "base", quantization_config=QuantizationConfig())
    model = prepare_model_for_int8_training(model)
    model = get_peft_model(model, config)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=4,
        save_steps=3,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=3,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model, args=arguments, train_dataset=data, eval_dataset=data, data_collator=default_data_collator
    )
    trainer.train(resume_from_checkpoint=resume)
    return [line[key] for line in trainer.state.log_history for key in ("loss", "eval_loss") if key in line]


whole = train(out / "whole", None)
checkpoint = out / "whole" / "checkpoint-3"
resumed = train(out / "resumed", str(checkpoint))
weights = list(checkpoint.glob("*.safetensors"))
keys = [key for path in weights for key in load_file(path)]
print(json.dumps({"whole": whole, "resumed": resumed, "keys": keys, "files": [path.name for path in weights]}))
