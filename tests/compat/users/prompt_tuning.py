"""Prompt tuning of a causal model: train, save, load, generate."""

import torch
from peft import PeftModel, PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, initializer_range=0.2, eos_token_id=None, **SIZES))


config = PromptTuningConfig(
    task_type=TaskType.CAUSAL_LM, num_virtual_tokens=6, prompt_tuning_init=PromptTuningInit.RANDOM
)
model = get_peft_model(base(), config)
model.print_trainable_parameters()
torch.manual_seed(1)
torch.nn.init.normal_(model.prompt_encoder["default"].embedding.weight)

ids = torch.randint(64, (4, 10))
# the first token is given, not learned
labels = ids.clone()
labels[:, 0] = -100
mask = torch.ones_like(ids)
mask[0, 7:] = 0
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
for _ in range(3):
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print("loss", loss.item())
model.save_pretrained("prompt")

loaded = PeftModel.from_pretrained(base(), "prompt").eval()
made = loaded.generate(
    input_ids=ids[:1, :4], attention_mask=mask[:1, :4], max_new_tokens=5, do_sample=False, pad_token_id=0
)
print("generated", *made[0, 4:].tolist())
