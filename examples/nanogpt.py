"""A small character-level GPT in the style of nanoGPT, trained with AdamW, Muon or a learned optimizer.

    python examples/nanogpt.py                                  # velo-sample, on the topics of Python's help()
    python examples/nanogpt.py --optimizer adamw --lr 3e-3
    python examples/nanogpt.py --optimizer zoo/celo2 --accumulate 4 --clip 1 --bf16
    python examples/nanogpt.py --text book.txt --out gpt.pt     # run it again to resume
    torchrun --nproc-per-node 2 examples/nanogpt.py             # divides the micro-batches among processes

Nothing is tuned. velo-sample is set by hand: it does not show VeLO's performance.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel

import pylo_zoo
from pylo_zoo import converters
from pylo_zoo.errors import ZooError, did_you_mean
from pylo_zoo.optim import Muon, optimizer_class, param_groups
from pylo_zoo.registry import load_registry

# --- the model ---------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A pre-norm transformer block: causal attention, then an MLP, with residual connections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, width))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Tokens ``[n, t]`` to logits ``[n, t, vocabulary]``, with tied embeddings as in GPT-2."""

    def __init__(self, vocabulary: int, context: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight
        for name, p in self.named_parameters():
            if p.ndim == 2:
                last = name.endswith(("out.weight", "mlp.2.weight"))  # the outputs that add to the residual stream
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * depth) if last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.norm(x))


# --- the optimizer -----------------------------------------------------------------------------------------------


def make_optimizer(name: str, model: nn.Module, steps: int, lr: float | None) -> tuple[torch.optim.Optimizer, bool]:
    """The optimizer, and whether it plans its step sizes, so that it needs no schedule."""
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=lr or 1e-3, betas=(0.9, 0.95), weight_decay=0.1), False
    if name == "muon":
        return Muon(param_groups(model), lr=lr or 0.02), False
    known = ["adamw", "muon", *load_registry()]
    if name not in known and not Path(name).is_dir() and not name.startswith("hf://"):
        raise ZooError(f"Unknown optimizer {name!r}.", did_you_mean(name, known, f"Use one of {', '.join(known)}."))
    artifact = pylo_zoo.load(name)
    cls = optimizer_class(artifact.family)
    options: dict[str, Any] = {**artifact.defaults, **({} if lr is None else {"lr": lr})}
    if cls.needs_loss:  # VeLO and Celo plan the whole run; num_steps counts optimizer steps, not micro-batches
        options["num_steps"] = steps
    # param_groups finds embeddings and heads, which CELO2 and Muon leave to AdamW.
    groups = param_groups(model, learned="*" if converters.get(artifact.family).learns_all else ())
    return cls(groups, weights=artifact, **options), cls.needs_loss


def rate(step: int, steps: int) -> float:
    """Factor of the learning rate at ``step``: warmup over a twentieth of the run, then a cosine to a tenth."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


# --- training ----------------------------------------------------------------------------------------------------


def read_text(path: Path | None) -> str:
    """The file's text, or by default the topics of Python's help(): about half a million characters."""
    if path is not None:
        return path.read_text(encoding="utf-8")
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def windows(data: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Sequences of ``data`` from ``starts``, and their targets, one token later."""
    sequences = data[starts[:, None] + torch.arange(context + 1, device=data.device)]
    return sequences[:, :-1], sequences[:, 1:]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    tokens, targets = batch
    return cross_entropy(model(tokens).float().flatten(0, 1), targets.flatten())


def train(arguments: argparse.Namespace, rank: int, world: int) -> None:
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    text = read_text(arguments.text)
    signs = sorted(set(text))
    index = {sign: i for i, sign in enumerate(signs)}
    data = torch.tensor([index[sign] for sign in text], device=device)
    split, context, steps = int(0.9 * len(data)), arguments.context, arguments.steps
    held_out = windows(data[split:], torch.linspace(0, len(data) - split - context - 1, 16).long(), context)

    torch.manual_seed(arguments.seed)  # the same weights in every process
    model = GPT(len(signs), context, arguments.width, arguments.depth, arguments.heads).to(device)
    optimizer, plans = make_optimizer(arguments.optimizer, model, steps, arguments.lr)
    peak = [group["lr"] for group in optimizer.param_groups]
    forward = DistributedDataParallel(model) if world > 1 else model
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=arguments.bf16)
    start = resume(arguments.out, model, optimizer) if arguments.out else 0
    if rank == 0:
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(data):,} characters, step {start}")
        if start >= steps:
            print(f"The run in {arguments.out} is finished. To start a new one, remove it or use another --out.")

    begun = time.perf_counter()
    for step in range(start, steps):
        for group, lr in zip(optimizer.param_groups, peak, strict=True):
            group["lr"] = lr if plans else lr * rate(step, steps)
        optimizer.zero_grad()
        total = torch.zeros((), device=device)
        for micro in range(rank, arguments.accumulate, world):
            # A micro-batch depends only on its number, so the run does not depend on the number of processes.
            generator = torch.Generator().manual_seed(
                arguments.seed + 1_000_003 * (step * arguments.accumulate + micro)
            )
            starts = torch.randint(split - context, (arguments.batch,), generator=generator).to(device)
            last = micro + world >= arguments.accumulate
            waits = nullcontext() if last or not isinstance(forward, DistributedDataParallel) else forward.no_sync()
            with waits:
                with autocast:
                    loss = loss_of(forward, windows(data[:split], starts, context))
                (loss * world / arguments.accumulate).backward()  # DDP takes the mean over processes
            total += loss.detach() / arguments.accumulate
        if world > 1:
            distributed.all_reduce(total)
        if arguments.clip:
            nn.utils.clip_grad_norm_(model.parameters(), arguments.clip)
        # Pass the mean loss over all micro-batches and processes, like the gradients. It must be the same in every
        # process, so that the optimizers' states stay equal. AdamW and Muon ignore it.
        mean = total.item()
        optimizer.step(lambda mean=mean: mean)
        if rank == 0 and (step % arguments.every == 0 or step == steps - 1):
            with torch.no_grad(), autocast:
                test = loss_of(model, held_out).item()
            speed = (step + 1 - start) / (time.perf_counter() - begun)
            print(f"step {step:5d}  loss {mean:.4f}  held out {test:.4f}  {speed:.2f} steps/s", flush=True)
        if rank == 0 and arguments.out and ((step + 1) % arguments.every == 0 or step == steps - 1):
            save(arguments.out, model, optimizer, step + 1)


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write a checkpoint, atomically."""
    staging = path.with_name(path.name + ".new")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, staging)
    staging.replace(path)


def resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the checkpoint if it exists, and return the number of finished steps."""
    if not path.exists():
        return 0
    saved = torch.load(path, map_location="cpu", weights_only=True)
    try:
        model.load_state_dict(saved["model"])
    except RuntimeError as error:
        raise ZooError(f"{path} contains another model.", "Use the same sizes and text, or another --out.") from error
    optimizer.load_state_dict(saved["optimizer"])
    return saved["step"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", default="velo-sample", help="adamw, muon, a registry name or a directory")
    parser.add_argument("--lr", type=float, help="peak learning rate; by default the optimizer's own")
    parser.add_argument("--text", type=Path, help="file to learn from")
    parser.add_argument("--out", type=Path, help="checkpoint file to write, and to resume from if it exists")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--every", type=int, default=50, help="steps between evaluations, and between checkpoints")
    parser.add_argument("--batch", type=int, default=16, help="sequences per micro-batch")
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches per step, over all processes")
    parser.add_argument("--clip", type=float, default=0.0, help="largest global norm of the gradient; 0 is off")
    parser.add_argument("--bf16", action="store_true", help="run the model with bfloat16 autocast")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per process")
    arguments = parser.parse_args()
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if arguments.accumulate % world:
        parser.error(f"--accumulate {arguments.accumulate} does not divide among {world} processes")
    for path in (arguments.text, arguments.out and arguments.out.absolute().parent):
        if path and not path.exists():
            parser.error(f"{path} does not exist")
    torch.set_num_threads(arguments.threads)
    if world > 1:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        train(arguments, rank, world)
    except ZooError as error:
        sys.exit(f"Error: {error.message}\nHint: {error.hint}" if rank == 0 else 1)
    if world > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
