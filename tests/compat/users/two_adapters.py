"""Two adapters on one base: load both, switch, switch off, delete."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, **SIZES)).eval()


def trained(seed: int, **fields: object) -> None:
    model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", **fields))
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(f"adapter{seed}")


trained(1, r=4)
trained(2, r=2, lora_alpha=6, target_modules=["o_proj", "up_proj"])
ids = torch.arange(1, 9)[None]


def say(what: str) -> None:
    with torch.no_grad():
        print(what, *model(input_ids=ids).logits[0, -1, :5].tolist())


model = PeftModel.from_pretrained(base(), "adapter1", adapter_name="one")
say("one")
model.load_adapter("adapter2", adapter_name="two")
print(*model.peft_config, model.active_adapter)
say("still one")
model.set_adapter("two")
say("two")
with model.disable_adapter():
    say("none")
say("two")
model.save_pretrained("both")
model.delete_adapter("two")
print(*model.peft_config)
model.set_adapter("one")
say("one")

model = PeftModel.from_pretrained(base(), "both/two", adapter_name="again")
say("two")
