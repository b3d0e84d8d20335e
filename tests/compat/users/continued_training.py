"""Going on with a saved adapter: is_trainable=True, and tensors taken out and put back by the state dict."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
ids = torch.arange(1, 33).reshape(4, 8)


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, **SIZES))


def train(model: torch.nn.Module) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print("loss", loss.item())


model = get_peft_model(base(), LoraConfig(r=4, lora_alpha=16, task_type="CAUSAL_LM"))
torch.manual_seed(1)
for parameter in model.parameters():
    if parameter.requires_grad:
        torch.nn.init.normal_(parameter, std=0.1)
train(model)
model.save_pretrained("half")

frozen = PeftModel.from_pretrained(base(), "half")
print("trainable", *frozen.get_nb_trainable_parameters())
continued = PeftModel.from_pretrained(base(), "half", is_trainable=True)
print("trainable", *continued.get_nb_trainable_parameters())
train(continued)

state = get_peft_model_state_dict(continued)
print(len(state), *sorted(state)[:2])
set_peft_model_state_dict(frozen, state)
with torch.no_grad():
    print("equal", *(frozen(ids).logits[0, -1, :5] - continued(ids).logits[0, -1, :5]).tolist())
