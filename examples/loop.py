"""A training loop as anybody writes it; a learned optimizer in place of AdamW is two lines of it.

python examples/loop.py
python examples/loop.py --optimizer adamw
"""

import argparse

import torch

from pylo_zoo.optim import VeLO

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--optimizer", choices=["velo", "adamw"], default="velo")
parser.add_argument("--steps", type=int, default=500)
arguments = parser.parse_args()

torch.manual_seed(0)
x = torch.rand(1024, 2) * 6 - 3
y = torch.sin(x[:, :1]) * torch.cos(x[:, 1:])  # a surface to be learned
model = torch.nn.Sequential(
    torch.nn.Linear(2, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)
)

if arguments.optimizer == "velo":
    # No learning rate: VeLO chooses its steps itself. It plans the whole run, so that it has to know its length.
    # velo-sample ships with the package and is set by hand; weights="velo" is Google's trained one.
    optimizer = VeLO(model.parameters(), num_steps=arguments.steps, weights="velo-sample")
else:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

for step in range(arguments.steps):
    batch = torch.randint(len(x), (128,))
    loss = torch.nn.functional.mse_loss(model(x[batch]), y[batch])
    optimizer.zero_grad()
    loss.backward()
    if isinstance(optimizer, VeLO):
        optimizer.step(loss=loss.item())  # VeLO reads whether the loss falls, and how fast
    else:
        optimizer.step()
    if step % 100 == 0 or step == arguments.steps - 1:
        print(f"step {step:4d}  loss {loss.item():.5f}")
