"""Merging: for good, and in place and back."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
torch.manual_seed(0)
base = LlamaForCausalLM(LlamaConfig(vocab_size=64, **SIZES)).eval()
model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", use_rslora=True, task_type="CAUSAL_LM"))
model.eval()
torch.manual_seed(1)
for parameter in model.parameters():
    if parameter.requires_grad:
        torch.nn.init.normal_(parameter, std=0.1)
ids = torch.arange(1, 9)[None]


def say(what: str, model: torch.nn.Module) -> None:
    with torch.no_grad():
        print(what, *model(input_ids=ids).logits[0, -1, :5].tolist())


say("adapted", model)
model.merge_adapter()
say("merged", model)
model.unmerge_adapter()
say("unmerged", model)
merged = model.merge_and_unload()
say("for good", merged)
print(type(merged).__name__, sum(parameter.numel() for parameter in merged.parameters()))
merged.save_pretrained("merged")
say("reloaded", AutoModelForCausalLM.from_pretrained("merged"))
