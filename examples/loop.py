"""An ordinary training loop. A learned optimizer replaces AdamW in two lines.

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
y = torch.sin(x[:, :1]) * torch.cos(x[:, 1:])
model = torch.nn.Sequential(
    torch.nn.Linear(2, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)
)

if arguments.optimizer == "velo":
    # VeLO chooses its step sizes, so it has no learning rate. It plans the whole run, so it requires its length.
    # velo-sample is set by hand and ships with the package. weights="velo" is Google's trained VeLO.
    optimizer = VeLO(model.parameters(), num_steps=arguments.steps, weights="velo-sample")
else:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

for step in range(arguments.steps):
    batch = torch.randint(len(x), (128,))
    loss = torch.nn.functional.mse_loss(model(x[batch]), y[batch])
    optimizer.zero_grad()
    loss.backward()
    if isinstance(optimizer, VeLO):
        optimizer.step(loss=loss.item())  # VeLO's step sizes depend on the course of the loss
    else:
        optimizer.step()
    if step % 100 == 0 or step == arguments.steps - 1:
        print(f"step {step:4d}  loss {loss.item():.5f}")
