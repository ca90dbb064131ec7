"""A small GPT over characters, in the manner of nanoGPT, with AdamW, Muon or a learned optimizer.

    python examples/nanogpt.py                                  # velo-sample, on the topics of Python's help()
    python examples/nanogpt.py --optimizer adamw --lr 3e-3
    python examples/nanogpt.py --optimizer zoo/celo2 --accumulate 4 --clip 1 --bf16
    python examples/nanogpt.py --text book.txt --out gpt.pt     # the same line again goes on where it stopped
    torchrun --nproc-per-node 2 examples/nanogpt.py             # each process takes a part of the micro-batches

Nothing is tuned. velo-sample is set by hand: it shows the machinery, not what VeLO can do.
"""

from __future__ import annotations

import argparse
import difflib
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
from pylo_zoo.errors import ZooError
from pylo_zoo.optim import Muon, optimizer_class, param_groups
from pylo_zoo.registry import load_registry

# --- the model ---------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Causal attention, then an MLP, each on normalised tokens and added to them."""

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
    """Tokens ``[n, t]`` to logits ``[n, t, vocabulary]``; the output layer is the embedding's own matrix (GPT-2)."""

    def __init__(self, vocabulary: int, context: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight
        for name, p in self.named_parameters():
            if p.ndim == 2:
                last = name.endswith(("out.weight", "mlp.2.weight"))  # those that add to the residual stream
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
    """The optimizer, and whether it plans its step sizes itself, so that a schedule would be one too many."""
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=lr or 1e-3, betas=(0.9, 0.95), weight_decay=0.1), False
    if name == "muon":
        return Muon(param_groups(model), lr=lr or 0.02), False
    known = ["adamw", "muon", *load_registry()]
    if name not in known and not Path(name).is_dir() and not name.startswith("hf://"):
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.0)[0]
        raise ZooError(f"There is no optimizer {name!r}.", f"The nearest is {near!r}. There are {', '.join(known)}.")
    artifact = pylo_zoo.load(name)
    cls = optimizer_class(artifact.family)
    options: dict[str, Any] = {**artifact.defaults, **({} if lr is None else {"lr": lr})}
    if cls.needs_loss:  # VeLO and Celo plan the whole run; steps are the optimizer's, whatever is accumulated
        options["num_steps"] = steps
    # param_groups says which matrices are embeddings and heads: the rules treat them, or leave them to AdamW.
    groups = param_groups(model, learned="*" if artifact.family == "celo2-base" else ())
    return cls(groups, weights=artifact, **options), cls.needs_loss


def rate(step: int, steps: int) -> float:
    """Of the learning rate at ``step``: a warmup over a twentieth of the run, then a cosine to a tenth."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


# --- training ----------------------------------------------------------------------------------------------------


def read_text(path: Path | None) -> str:
    """The file's, or what Python itself has to say on its own language: some half a million characters."""
    if path is not None:
        return path.read_text(encoding="utf-8")
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def windows(data: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Sequences of ``data`` from ``starts``, and the same one token later."""
    found = data[starts[:, None] + torch.arange(context + 1, device=data.device)]
    return found[:, :-1], found[:, 1:]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    tokens, following = batch
    return cross_entropy(model(tokens).float().flatten(0, 1), following.flatten())


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
            print(f"The run in {arguments.out} is finished. To start over, remove it, or give another --out.")

    begun = time.perf_counter()
    for step in range(start, steps):
        for group, lr in zip(optimizer.param_groups, peak, strict=True):
            group["lr"] = lr if plans else lr * rate(step, steps)
        optimizer.zero_grad()
        total = torch.zeros((), device=device)
        for micro in range(rank, arguments.accumulate, world):
            # What a micro-batch holds depends on its number alone: any number of processes sees the same run.
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
        # A learned optimizer gets the loss that its gradients are of: the mean over all micro-batches and processes.
        # The same in each process, it keeps their states alike. AdamW and Muon have no use for it.
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
    """Write all that a run needs to go on, and put it into place in one move."""
    staging = path.with_name(path.name + ".new")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, staging)
    staging.replace(path)


def resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Take up what :func:`save` left, if it is there; how many steps are done."""
    if not path.exists():
        return 0
    saved = torch.load(path, map_location="cpu", weights_only=True)
    try:
        model.load_state_dict(saved["model"])
    except RuntimeError as error:
        raise ZooError(f"{path} holds another model.", "Give its sizes and text again, or another --out.") from error
    optimizer.load_state_dict(saved["optimizer"])
    return saved["step"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", default="velo-sample", help="adamw, muon, a registry name or a directory")
    parser.add_argument("--lr", type=float, help="peak learning rate; by default the optimizer's own")
    parser.add_argument("--text", type=Path, help="file to learn from")
    parser.add_argument("--out", type=Path, help="checkpoint: written, and resumed where it is there")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--every", type=int, default=50, help="steps between two looks, and two checkpoints")
    parser.add_argument("--batch", type=int, default=16, help="sequences a micro-batch")
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches a step, over all processes")
    parser.add_argument("--clip", type=float, default=0.0, help="largest global norm of the gradient; 0 is off")
    parser.add_argument("--bf16", action="store_true", help="run the model in bfloat16 where autocast finds it right")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="on the CPU, of each process")
    arguments = parser.parse_args()
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if arguments.accumulate % world:
        parser.error(f"--accumulate {arguments.accumulate} does not divide among {world} processes")
    for path in (arguments.text, arguments.out and arguments.out.absolute().parent):
        if path and not path.exists():
            parser.error(f"there is no {path}")
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
