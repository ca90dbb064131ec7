"""What a parameter is: told by the module that owns it, and where no module tells, by its name and shape.

Each answer names the layout in which the parameter is kept (SPEC §1), who updates it where an optimizer gives some
parameters to AdamW (SPEC §6), and why.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import ParametrizationList

Shape = tuple[int, ...]

MATRIX = "matrix (out, in)"
VECTORS = ("bias", "norm", "vector")
"""Kinds that the usual recipe spares weight decay."""


class Trait(NamedTuple):
    """What a parameter was recognized as."""

    kind: str
    """embedding, head, norm, bias, vector, table, matrix, convolution or stack."""
    layout: str
    rule: str | None
    """"learned", "adamw", or None where the checkpoint decides by the number of axes."""
    reason: str


class Owner(NamedTuple):
    """One place of the model where a parameter is registered."""

    name: str
    """Its name there, as :meth:`torch.nn.Module.named_parameters` has it."""
    module: nn.Module
    """The module that computes with it: for ``fc.parametrizations.weight.original0`` that is ``fc``."""
    tensor: str
    """What that module calls it, such as ``weight``."""
    part: str
    """Which part of a parametrized tensor it is, such as ``original0``; empty where it is the tensor itself."""


def owners(model: nn.Module) -> Iterator[tuple[Owner, nn.Parameter]]:
    """Every place of every parameter, in the model's order; shared parameters and modules come up repeatedly."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for prefix, module in modules.items():
        for own, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}.{own}" if prefix else own
            parametrized, _, tensor = prefix.rpartition("parametrizations.")
            if isinstance(module, ParametrizationList) and "." not in tensor:
                yield Owner(name, modules[parametrized.removesuffix(".")], tensor, own), parameter
            else:
                yield Owner(name, module, own, ""), parameter


def recognize(owner: Owner, shape: Shape, head: bool) -> Trait:
    """What the parameter of ``shape`` at ``owner`` is; ``head`` says that its module is an output head."""
    module, label = owner.module, type(owner.module).__name__
    label = label.removeprefix("Parametrized")
    if len(shape) < 2:
        return _of_one_axis(owner, shape, label)
    if _is_norm(module):
        return Trait("norm", "jax", "adamw", f"{label}: element by element, no matrix")
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return Trait("embedding", "jax", "adamw", "embedding table (vocabulary, dim)")
    if long_axes(shape) < 2 and (owner.part == "original0" or owner.tensor.endswith("_g")):
        return Trait("vector", "torch", "adamw", "magnitudes of weight normalization, one a row")
    trait = _of_module(owner, shape, label) or _of_name(owner, shape, label)
    if head and trait.kind in ("matrix", "convolution"):
        return Trait("head", trait.layout, "adamw", f"output head: {trait.reason}")
    return trait


def long_axes(shape: Shape) -> int:
    """How many axes are longer than 1."""
    return sum(size > 1 for size in shape)


def _of_one_axis(owner: Owner, shape: Shape, label: str) -> Trait:
    if _is_norm(owner.module):
        return Trait("norm", "torch", None, f"{label} {owner.tensor}")
    if "bias" in owner.tensor.lower():
        return Trait("bias", "torch", None, "bias")
    return Trait("vector", "torch", None, "vector" if shape else "scalar")


def _of_module(owner: Owner, shape: Shape, label: str) -> Trait | None:
    """By the type of the module; None where the type says nothing."""
    module = owner.module
    if isinstance(module, _ConvNd):
        return Trait("convolution", "torch", "learned", _convolution(module, shape))
    if isinstance(module, nn.MultiheadAttention) and len(shape) == 2:
        fused = owner.tensor == "in_proj_weight"
        return Trait("matrix", "torch", "learned", _fused(MATRIX) if fused else MATRIX)
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and len(shape) == 2:
        gates = {"LSTM": 4, "GRU": 3}.get(label.removesuffix("Cell"), 1) if "_hr" not in owner.tensor else 1
        fused = f"; {gates} fused gates, updated as one" if gates > 1 else ""
        return Trait("matrix", "torch", "learned", f"{MATRIX}{fused}")
    if isinstance(module, nn.Bilinear):
        return Trait("stack", "jax", "learned", "bilinear forms, a stack of (in1, in2), one an output")
    if label == "Conv1D" and hasattr(module, "nf") and len(shape) == 2:  # transformers' GPT-2: x @ weight
        reason = "matrix kept as (in, out), as transformers' Conv1D does"
        return Trait("matrix", "jax", "learned", _fused(reason) if FUSED.search(owner.name) else reason)
    if isinstance(module, nn.Linear) and len(shape) == 2:
        if LORA.search(owner.name.lower()):
            return Trait("matrix", "torch", "learned", "low-rank factor (out, in)")
        return Trait("matrix", "torch", "learned", _fused("matrix (out, in)") if FUSED.search(owner.name) else MATRIX)
    return None


FUSED = re.compile(r"(^|[._])(w?qkv|c_attn|query_key_value|kv|gate_up)(_proj)?([._]|$)", re.IGNORECASE)
EMBEDDING = re.compile(
    r"(^|[._])(w[tp]e|pos|position|positional|vocab|codebook|prompt)([._]|$)|emb(ed|$|[._])|tokens?$|trainable_tokens"
)
LORA_EMBEDDING = re.compile(r"(^|[._])lora_embedding_[ab]([._]|$)")
LORA = re.compile(r"(^|[._])lora_[ab]([._]|$)")
"""Names of the peft package: its factors of an embedding lie in a ParameterDict, one per adapter."""
TALL = (4096, 8)


def _fused(reason: str) -> str:
    """An optimizer cannot split a parameter: Newton–Schulz takes Q, K and V together, and the reason says so."""
    return f"{reason}; fused projections, updated as one"


def _convolution(module: _ConvNd, shape: Shape) -> str:
    if isinstance(module, _ConvTransposeNd):
        # haiku, and flax with transpose_kernel=True, keep (*spatial, out, in): torch's axes in the order of "torch"
        return "transposed convolution (in, out, *spatial), as haiku's (*spatial, out, in)"
    if module.groups == 1:
        return "convolution (out, in, *spatial)"
    if module.groups == module.in_channels:
        return "depthwise convolution (channels, 1, *spatial)"
    return f"convolution of {module.groups} groups (out, in/groups, *spatial)"


def _of_name(owner: Owner, shape: Shape, label: str) -> Trait:
    """By name and shape, for parameters that a custom module owns itself."""
    name = owner.name.lower()
    own = owner.tensor.lower()
    if isinstance(owner.module, (nn.ParameterList, nn.ParameterDict)):  # the container's name says what it holds
        own = ".".join(name.split(".")[-2:]).removesuffix(f".{own}" if own.isdecimal() else "")
    if own.endswith("bias"):
        return Trait("bias", "jax", "adamw", "biases, stacked or kept to broadcast")
    if long_axes(shape) < 2:
        return Trait("vector", "jax", "adamw", "one axis longer than 1: a vector, kept to broadcast")
    if owner.tensor.lower() == "a_log":
        return Trait("vector", "jax", "adamw", "decays of a state space: element by element, no matrix")
    if len(shape) > 2 and re.search(r"expert|(^|[._])moe([._]|$)", name):
        return _stack(owner, shape, "stacked experts, read as (experts, {})")
    if LORA_EMBEDDING.search(own):
        return Trait("table", "torch", "adamw", "low-rank factor of an embedding (out, in)")
    if EMBEDDING.search(own) or ("embed" in label.lower() and len(shape) == 2):
        return Trait("table", "jax", "adamw", "table of embeddings, by its name")
    if len(shape) > 2 and shape[0] == 1:
        return Trait("table", "jax", "adamw", "first axis 1: a table that broadcasts over the batch")
    if len(shape) > 2 and "conv" in label.lower():
        return Trait("convolution", "torch", "learned", "convolution (out, in, *spatial), by its module's name")
    if len(shape) == 2 and LORA.search(own):
        return Trait("matrix", "torch", "learned", "low-rank factor (out, in)")
    if len(shape) == 2:
        rows, columns = shape
        tall = rows >= TALL[0] and rows >= TALL[1] * columns
        hint = "; tall: if it is a table, name it in adamw=" if tall else ""
        return Trait("matrix", "torch", "learned", f"read as a matrix (out, in){hint}")
    if len(shape) == 3:
        return _stack(owner, shape, "stacked matrices, read as (stack, {})")
    return Trait("convolution", "torch", "learned", "read as a convolution (out, in, *spatial)")


UP, DOWN = re.compile(r"up|gate|w1|w3|wi|fc1"), re.compile(r"down|w2|wo|fc2")


def _stack(owner: Owner, shape: Shape, reason: str) -> Trait:
    """A stack of matrices, as JAX keeps it unless the shapes of the module's up and down projections say otherwise."""
    pairs = [
        (tuple(up.shape), tuple(down.shape))
        for up_name, up in owner.module.named_parameters(recurse=False)
        for down_name, down in owner.module.named_parameters(recurse=False)
        if UP.search(up_name) and DOWN.search(down_name) and len(up.shape) == len(down.shape) == len(shape)
    ]
    jax = any(up[-2] == down[-1] and up[-1] in (down[-2], 2 * down[-2]) for up, down in pairs)
    torch = any(up[-1] == down[-2] and up[-2] in (down[-1], 2 * down[-1]) for up, down in pairs)
    if torch and not jax:
        return Trait("stack", "torch-stacked", "learned", reason.format("out, in") + ", as the module's shapes fit")
    told = ", as the module's shapes fit" if jax and not torch else '; else say "torch-stacked"'
    return Trait("stack", "jax", "learned", reason.format("in, out") + told)


def _is_norm(module: nn.Module) -> bool:
    known = isinstance(module, (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm))
    return known or bool(re.search(r"norm(\dd)?$", type(module).__name__, re.IGNORECASE))


# --- output heads ----------------------------------------------------------------------------------------------------

HEADS = re.compile(
    r"(lm_|classification_|output_)?heads?|classifiers?|embed_out|unembed(ding)?|(to_)?logits?|readout|"
    r"output_(layer|proj|projection)|score"
)
TOP_HEADS = re.compile(r"fc|out|output|decoder|proj_out")
"""Names that mean the head where they stand at the top and are one layer."""


def output_heads(model: nn.Module) -> set[int]:
    """``id``s of the layers that compute the model's outputs.

    The model is asked first (``get_output_embeddings()`` of transformers, ``get_classifier()`` of timm); then names
    decide, never inside a numbered block. A position alone does not: a Sequential's last layer may be hidden.
    """
    inner = _unwrapped(model)
    found = [_asked(inner, method) for method in ("get_output_embeddings", "get_classifier")]
    for path, module in inner.named_modules():
        *above, last = path.split(".")
        inside_block = any(part.isdecimal() for part in above)
        top = not above and TOP_HEADS.fullmatch(last) and isinstance(module, (nn.Linear, _ConvNd))
        readout = type(module).__name__ in ("MuReadout", "MuSharedReadout")
        if readout or top or (not inside_block and HEADS.fullmatch(last)):
            found.extend(module if isinstance(module, nn.ModuleList) else [module])
    return {id(layer) for each in found if (layer := _last_layer(each)) is not None}


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, torch.compile and the like."""
    while list(model._modules) in (["module"], ["_orig_mod"]):
        (model,) = model.children()
    return model


def _asked(model: nn.Module, method: str) -> nn.Module | None:
    try:
        answer = getattr(model, method)()
    except (AttributeError, RuntimeError, TypeError):  # a model may say that it has none
        return None
    return answer if isinstance(answer, nn.Module) else None


def _last_layer(module: nn.Module | None) -> nn.Module | None:
    """The last layer with weights inside ``module``, which may be that layer itself."""
    layers = [] if module is None else [m for m in module.modules() if isinstance(m, (nn.Linear, _ConvNd))]
    return layers[-1] if layers else None


__all__ = ["VECTORS", "Owner", "Trait", "long_axes", "output_heads", "owners", "recognize"]
