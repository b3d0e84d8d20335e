"""The commonest PEFT script with its import changed; run by test_scripts.py with bitsandbytes present and absent.

Prints one line of JSON: the losses, and the codes of the quantized layers before and after preparing.
"""

import hashlib
import json
import sys

folder, bitsandbytes = sys.argv[1:]
if bitsandbytes == "absent":
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]

import torch  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from lorasmith import LoraConfig, get_peft_model, prepare_model_for_kbit_training  # noqa: E402

if bitsandbytes == "absent":
    from lorasmith import BitsAndBytesConfig
else:
    from transformers import BitsAndBytesConfig


def codes(model: torch.nn.Module) -> dict[str, str]:
    """A digest of the packed bytes of every layer that is stored in 4 bits."""
    packed = {name: p for name, p in model.named_parameters() if name.endswith("proj.weight")}
    assert all(p.dtype == torch.uint8 for p in packed.values())
    return {name: hashlib.sha256(bytes(p.detach().flatten().tolist())).hexdigest() for name, p in packed.items()}


bnb_config = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)
model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=bnb_config)
kinds = {type(module).__name__ for name, module in model.named_modules() if name.endswith("proj")}
before = codes(model)
model = prepare_model_for_kbit_training(model)
after = codes(model)
config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], lora_dropout=0.05, task_type="CAUSAL_LM")
# loading draws random numbers, and not the same ones with every library
torch.manual_seed(0)
model = get_peft_model(model, config)

ids = torch.randint(model.config.vocab_size, (4, 16))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
losses = []
model.train()
for _ in range(8):
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(json.dumps({"losses": losses, "kinds": sorted(kinds), "before": before, "after": after}))
