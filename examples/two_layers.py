"""LoRA on a module of two linear layers: trained on a toy regression, then merged into the weights."""

import torch
from torch import nn

from lorasmith import LoraConfig, count_parameters
from lorasmith.attach import attach, merge_and_unload


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(16, 64)
        self.out = nn.Linear(64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.hidden(x)))


torch.manual_seed(0)
model, x = TwoLayers(), torch.randn(256, 16)
target = x[:, :1] * x[:, 1:2]

adapters = attach(model, LoraConfig(r=4, lora_alpha=8, target_modules=["hidden", "out"]))
print(model, count_parameters(model), sep="\n")

optimizer = torch.optim.Adam([parameter for _, parameter in adapters.trainable()], lr=0.02)
for step in range(201):
    loss = nn.functional.mse_loss(model(x), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step}: loss {loss.item():.4f}")

adapted = model(x)
merged = merge_and_unload(model)
print(merged, f"merged - adapted: at most {(merged(x) - adapted).abs().max().item():.1e}", sep="\n")
