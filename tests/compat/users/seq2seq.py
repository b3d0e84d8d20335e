"""A sequence-to-sequence model of T5's kind: LoRA on the default modules, training, generation."""

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration

SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}


def base() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(vocab_size=64, decoder_start_token_id=0, pad_token_id=0, dropout_rate=0.0, **SIZES)
    return T5ForConditionalGeneration(config).eval()


config = LoraConfig(task_type=TaskType.SEQ_2_SEQ_LM, inference_mode=False, r=8, lora_alpha=32, lora_dropout=0.0)
model = get_peft_model(base(), config)
model.print_trainable_parameters()
torch.manual_seed(1)
for parameter in model.parameters():
    if parameter.requires_grad:
        torch.nn.init.normal_(parameter, std=0.1)

ids, labels = torch.randint(1, 64, (4, 8)), torch.randint(1, 64, (4, 5))
labels[0, 3:] = -100
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
for _ in range(3):
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print("loss", loss.item())
model.save_pretrained("seq2seq")

loaded = PeftModel.from_pretrained(base(), "seq2seq").eval()
made = loaded.generate(input_ids=ids[:2], max_new_tokens=5, do_sample=False)
print("generated", *made.flatten().tolist())
