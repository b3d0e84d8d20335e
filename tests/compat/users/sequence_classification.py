"""A classifier: LoRA on the attention, the new head trained whole, another module named in modules_to_save."""

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def base() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=3, **SIZES)).eval()


config = LoraConfig(
    task_type=TaskType.SEQ_CLS, r=4, lora_alpha=8, lora_dropout=0.0, modules_to_save=["classifier", "pooler"]
)
model = get_peft_model(base(), config)
model.print_trainable_parameters()
torch.manual_seed(1)
for name, parameter in model.named_parameters():
    if "lora_" in name:
        torch.nn.init.normal_(parameter, std=0.1)

ids, labels = torch.randint(64, (6, 10)), torch.tensor([0, 1, 2, 0, 1, 2])
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
for _ in range(3):
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print("loss", loss.item())
model.save_pretrained("classifier")

loaded = PeftModel.from_pretrained(base(), "classifier").eval()
with torch.no_grad():
    print("logits", *loaded(ids[:2]).logits.flatten().tolist())
    print("answers", *loaded(ids).logits.argmax(-1).tolist())
