"""A character language model on text that ships with Python: the topics of ``help()``."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pylo_zoo.errors import UsageError, ZooError, count
from pylo_zoo.experiments.tasks.base import Batch, Metrics, Task, generator, initialize

HELD_OUT = 0.1
EVALUATED = 32
"""Number of held-out sequences to evaluate."""
DATA = "the topics of Python's help(), from the running Python (pydoc_data.topics; PSF License)"


def text() -> str:
    """The text: 465,048 characters on the Python language in Python 3.11, and a similar number in other versions.

    Raises:
        ZooError: this Python does not include the text.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ZooError(
            "This Python has no pydoc_data, which contains the text of the task.", "Install your system's full Python."
        ) from error
    return "\n".join(topics[name] for name in sorted(topics))


class Transformer(nn.Module):
    """A GPT-style decoder: learned positions, pre-norm blocks, causal attention, untied output layer.

    Args:
        vocabulary: number of distinct characters.
        context: longest sequence.
        width: width of the tokens.
        depth: number of blocks.
        heads: number of attention heads.
    """

    def __init__(self, vocabulary: int, context: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``[n, t, vocabulary]`` of the next token, for tokens ``[n, t]``."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Block(nn.Module):
    """Attention, then a two-layer MLP, each with layer norm and a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = self.qkv(self.before(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, width))
        return x + self.mlp(self.between(x))


def language_model(*, width: int = 64, depth: int = 2, heads: int = 4, context: int = 64, batch_size: int = 16) -> Task:
    """A character-level transformer.

    Args:
        width: width of the tokens, divisible by ``heads``.
        depth: number of blocks.
        heads: number of attention heads.
        context: characters per sequence.
        batch_size: sequences per step.
    """
    if width % heads:
        raise UsageError(f"The width {width} is not divisible by {heads} heads.", f"Use a multiple of {heads}.")
    sizes = {"width": width, "depth": depth, "heads": heads, "context": context, "batch_size": batch_size}
    return text_task(text(), "chars", DATA, **sizes)


def text_task(
    corpus: str, name: str, data: str, *, width: int, depth: int, heads: int, context: int, batch_size: int
) -> Task:
    """:func:`language_model` on the text ``corpus``, whose last tenth is held out."""
    characters = sorted(set(corpus))
    if len(corpus) < 20 * (context + 1):
        raise UsageError(
            f"A text of {count(len(corpus), 'character')} is too short for a context of {context}.",
            "Use a longer text.",
        )
    index = {character: i for i, character in enumerate(characters)}
    encoded = torch.tensor([index[character] for character in corpus], dtype=torch.long)
    split = int(len(encoded) * (1 - HELD_OUT))
    train, test = encoded[:split], encoded[split:]
    starts = torch.linspace(0, len(test) - context - 1, EVALUATED).long()
    held_out = torch.stack([test[start : start + context + 1] for start in starts])

    def batch(seed: int, step: int) -> Batch:
        starts = torch.randint(len(train) - context, (batch_size,), generator=generator(seed, 2, step))
        return (train[starts[:, None] + torch.arange(context + 1)],)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        (sequences,) = batch
        logits = model(sequences[:, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten())

    @torch.no_grad()
    def evaluate(model: nn.Module) -> Metrics:
        device = next(model.parameters()).device
        nats = loss(model, (held_out.to(device),)).item()
        return {"test_loss": nats, "bits_per_character": nats / math.log(2)}

    def model(seed: int) -> nn.Module:
        net = initialize(Transformer(len(characters), context, width, depth, heads), seed)
        with torch.no_grad():
            for p in (*net.tokens.parameters(), *net.positions.parameters()):  # pyright: ignore
                p.mul_(0.02 * math.sqrt(p.shape[1]))
            for block in net.blocks:  # pyright: ignore
                for last in (block.out, block.mlp[2]):  # keeps the scale of the residual stream, as in GPT-2
                    last.weight.mul_(1 / math.sqrt(2 * depth))
        return net

    return Task(
        name,
        f"next of {count(len(characters), 'character')}, a transformer of {count(depth, 'block')} of {width}",
        model,
        batch,
        loss,
        evaluate,
        steps=500,
        options={"width": width, "depth": depth, "heads": heads, "context": context, "batch_size": batch_size},
        data=data,
    )
