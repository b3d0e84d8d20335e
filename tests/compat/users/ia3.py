"""IA3 on a causal model: the default modules, training, merging."""

import torch
from peft import IA3Config, PeftConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, **SIZES))


model = get_peft_model(base(), IA3Config(task_type="CAUSAL_LM"))
model.print_trainable_parameters()
torch.manual_seed(1)
ids = torch.randint(64, (4, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
for _ in range(3):
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print("loss", loss.item())
model.save_pretrained("vectors")

config = PeftConfig.from_pretrained("vectors")
print(config.peft_type.value, len(config.target_modules))
loaded = PeftModel.from_pretrained(base(), "vectors").eval()
merged = PeftModel.from_pretrained(base(), "vectors").merge_and_unload().eval()
with torch.no_grad():
    print("adapted", *loaded(ids[:1]).logits[0, -1, :6].tolist())
    print("merged", *merged(ids[:1]).logits[0, -1, :6].tolist())
print(type(merged).__name__)
