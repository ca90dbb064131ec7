"""Small look-alikes of well-known models, for tests of parameter routing."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.c_attn = nn.Linear(dim, 3 * dim)
        self.c_proj = nn.Linear(dim, dim)


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.attn = Attention(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))


class GPT(nn.Module):
    """A GPT; ``tied`` shares the head with the token embedding, as GPT-2 does."""

    def __init__(self, tied: bool, dim: int = 8, blocks: int = 3, vocabulary: int = 20) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, dim)
        self.wpe = nn.Embedding(16, dim)
        self.h = nn.ModuleList(Block(dim) for _ in range(blocks))
        self.ln_f = nn.LayerNorm(dim)
        self.lm_head = nn.Linear(dim, vocabulary, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight


class Conv1D(nn.Module):
    """The layer of that name in transformers, which stores a matrix as (in, out)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))


class LlamaRMSNorm(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))


class VocabParallelEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 4))


class MyConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3))


class Raw(nn.Module):
    """A custom module with one direct parameter."""

    def __init__(self, name: str, *shape: int) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.randn(shape)))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 8))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, 8, 2)})
        self.blocks = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16))
        self.head = nn.Linear(8, 10)

    def get_classifier(self) -> nn.Module:
        return self.head


class Experts(nn.Module):
    """Stacked experts as in transformers, stored as (experts, in, out) or, if ``transposed``, as (experts, out, in)."""

    def __init__(self, transposed: bool, dim: int, hidden: int) -> None:
        super().__init__()
        up, down = torch.randn(2, dim, 2 * hidden), torch.randn(2, hidden, dim)
        self.gate_up_proj = nn.Parameter(up.mT.clone() if transposed else up)
        self.down_proj = nn.Parameter(down.mT.clone() if transposed else down)
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(2, 2 * hidden))


class Transposed(nn.Module):
    """A model whose stacked experts are stored as (experts, out, in)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.experts = nn.ParameterDict({"down_proj": nn.Parameter(weight.mT.clone())})
