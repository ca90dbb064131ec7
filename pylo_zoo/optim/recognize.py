"""Recognizes parameters by the module that owns them, else by name and shape.

The result is the parameter's kind, its layout (SPEC §1), its rule (SPEC §6) and the reason.
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
"""Kinds that are usually excluded from weight decay."""


class Trait(NamedTuple):
    """The kind, layout and rule of a parameter."""

    kind: str
    """embedding, head, norm, bias, vector, table, matrix, convolution or stack."""
    layout: str
    rule: str | None
    """"learned", "adamw", or None if the checkpoint decides by the number of axes."""
    reason: str


class Owner(NamedTuple):
    """A module that registers a parameter."""

    name: str
    """The parameter's full name, as in :meth:`torch.nn.Module.named_parameters`."""
    module: nn.Module
    """The module that uses the parameter: ``fc`` for ``fc.parametrizations.weight.original0``."""
    tensor: str
    """The parameter's name in that module, such as ``weight``."""
    part: str
    """The part of a parametrized tensor, such as ``original0``; empty if the tensor is not parametrized."""


def owners(model: nn.Module) -> Iterator[tuple[Owner, nn.Parameter]]:
    """All owners of all parameters, in the model's order. Shared parameters and modules appear repeatedly."""
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
    """Recognize the parameter of ``shape`` at ``owner``; ``head`` is whether its module is an output head."""
    module, label = owner.module, type(owner.module).__name__
    label = label.removeprefix("Parametrized")
    if len(shape) < 2:
        return _recognize_vector(owner, shape, label)
    if _is_norm(module):
        return Trait("norm", "jax", "adamw", f"{label}: elementwise, not a matrix")
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return Trait("embedding", "jax", "adamw", "embedding table (vocabulary, dim)")
    if long_axes(shape) < 2 and (owner.part == "original0" or owner.tensor.endswith("_g")):
        return Trait("vector", "torch", "adamw", "magnitudes of weight normalization, one per row")
    trait = _recognize_by_module(owner, shape, label) or _recognize_by_name(owner, shape, label)
    if head and trait.kind in ("matrix", "convolution"):
        return Trait("head", trait.layout, "adamw", f"output head: {trait.reason}")
    return trait


def long_axes(shape: Shape) -> int:
    """The number of axes longer than 1."""
    return sum(size > 1 for size in shape)


def _recognize_vector(owner: Owner, shape: Shape, label: str) -> Trait:
    if _is_norm(owner.module):
        return Trait("norm", "torch", None, f"{label} {owner.tensor}")
    if "bias" in owner.tensor.lower():
        return Trait("bias", "torch", None, "bias")
    return Trait("vector", "torch", None, "vector" if shape else "scalar")


def _recognize_by_module(owner: Owner, shape: Shape, label: str) -> Trait | None:
    """Recognize by the module's type; None if the type is unknown."""
    module = owner.module
    if isinstance(module, _ConvNd):
        return Trait("convolution", "torch", "learned", _describe_convolution(module, shape))
    if isinstance(module, nn.MultiheadAttention) and len(shape) == 2:
        fused = owner.tensor == "in_proj_weight"
        return Trait("matrix", "torch", "learned", _with_fused_note(MATRIX) if fused else MATRIX)
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and len(shape) == 2:
        gates = {"LSTM": 4, "GRU": 3}.get(label.removesuffix("Cell"), 1) if "_hr" not in owner.tensor else 1
        fused = f"; {gates} fused gates, updated as one" if gates > 1 else ""
        return Trait("matrix", "torch", "learned", f"{MATRIX}{fused}")
    if isinstance(module, nn.Bilinear):
        return Trait("stack", "jax", "learned", "bilinear forms, a stack of (in1, in2), one per output")
    if label == "Conv1D" and hasattr(module, "nf") and len(shape) == 2:  # transformers' GPT-2: x @ weight
        reason = "matrix (in, out), transformers' Conv1D"
        return Trait("matrix", "jax", "learned", _with_fused_note(reason) if FUSED.search(owner.name) else reason)
    if isinstance(module, nn.Linear) and len(shape) == 2:
        if LORA.search(owner.name.lower()):
            return Trait("matrix", "torch", "learned", "low-rank factor (out, in)")
        return Trait(
            "matrix", "torch", "learned", _with_fused_note("matrix (out, in)") if FUSED.search(owner.name) else MATRIX
        )
    return None


FUSED = re.compile(r"(^|[._])(w?qkv|c_attn|query_key_value|kv|gate_up)(_proj)?([._]|$)", re.IGNORECASE)
EMBEDDING = re.compile(
    r"(^|[._])(w[tp]e|pos|position|positional|vocab|codebook|prompt)([._]|$)|emb(ed|$|[._])|tokens?$|trainable_tokens"
)
LORA_EMBEDDING = re.compile(r"(^|[._])lora_embedding_[ab]([._]|$)")
LORA = re.compile(r"(^|[._])lora_[ab]([._]|$)")
"""Names in the peft package, which stores an embedding's factors in a ParameterDict, one entry per adapter."""
TALL = (4096, 8)
"""A matrix with this many rows, and this many times more rows than columns, may be a table."""


def _with_fused_note(reason: str) -> str:
    """Add a note that Newton–Schulz orthogonalizes fused projections (Q, K, V) as one matrix."""
    return f"{reason}; fused projections, updated as one"


def _describe_convolution(module: _ConvNd, shape: Shape) -> str:
    if isinstance(module, _ConvTransposeNd):
        # haiku, and flax with transpose_kernel=True, store (*spatial, out, in), which matches layout "torch"
        return "transposed convolution (in, out, *spatial), like haiku's (*spatial, out, in)"
    if module.groups == 1:
        return "convolution (out, in, *spatial)"
    if module.groups == module.in_channels:
        return "depthwise convolution (channels, 1, *spatial)"
    return f"convolution of {module.groups} groups (out, in/groups, *spatial)"


def _recognize_by_name(owner: Owner, shape: Shape, label: str) -> Trait:
    """Recognize a custom module's parameter by name and shape."""
    name = owner.name.lower()
    local = owner.tensor.lower()
    if isinstance(owner.module, (nn.ParameterList, nn.ParameterDict)):  # only the container's name is meaningful
        local = ".".join(name.split(".")[-2:]).removesuffix(f".{local}" if local.isdecimal() else "")
    if local.endswith("bias"):
        return Trait("bias", "jax", "adamw", "biases, stacked or shaped to broadcast")
    if long_axes(shape) < 2:
        return Trait("vector", "jax", "adamw", "one axis longer than 1: a vector shaped to broadcast")
    if owner.tensor.lower() == "a_log":
        return Trait("vector", "jax", "adamw", "decays of a state space: elementwise, not a matrix")
    if len(shape) > 2 and re.search(r"expert|(^|[._])moe([._]|$)", name):
        return _recognize_stack(owner, shape, "stacked experts, read as (experts, {})")
    if LORA_EMBEDDING.search(local):
        return Trait("table", "torch", "adamw", "low-rank factor of an embedding (out, in)")
    if EMBEDDING.search(local) or ("embed" in label.lower() and len(shape) == 2):
        return Trait("table", "jax", "adamw", "embedding table, by its name")
    if len(shape) > 2 and shape[0] == 1:
        return Trait("table", "jax", "adamw", "first axis 1: a table that broadcasts over the batch")
    if len(shape) > 2 and "conv" in label.lower():
        return Trait("convolution", "torch", "learned", "convolution (out, in, *spatial), by its module's name")
    if len(shape) == 2 and LORA.search(local):
        return Trait("matrix", "torch", "learned", "low-rank factor (out, in)")
    if len(shape) == 2:
        rows, columns = shape
        tall = rows >= TALL[0] and rows >= TALL[1] * columns
        hint = "; tall: if it is a table, list it in adamw=" if tall else ""
        return Trait("matrix", "torch", "learned", f"read as a matrix (out, in){hint}")
    if len(shape) == 3:
        return _recognize_stack(owner, shape, "stacked matrices, read as (stack, {})")
    return Trait("convolution", "torch", "learned", "read as a convolution (out, in, *spatial)")


UP, DOWN = re.compile(r"up|gate|w1|w3|wi|fc1"), re.compile(r"down|w2|wo|fc2")


def _recognize_stack(owner: Owner, shape: Shape, reason: str) -> Trait:
    """A stack of matrices: in JAX's layout unless the shapes of the module's up and down projections show torch's."""
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
    by_shape = jax and not torch
    evidence = ", as the module's shapes fit" if by_shape else '; if (out, in), set its layout to "torch-stacked"'
    return Trait("stack", "jax", "learned", reason.format("in, out") + evidence)


def _is_norm(module: nn.Module) -> bool:
    known = isinstance(module, (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm))
    return known or bool(re.search(r"norm(\dd)?$", type(module).__name__, re.IGNORECASE))


# --- output heads ----------------------------------------------------------------------------------------------------

HEADS = re.compile(
    r"(lm_|classification_|output_)?heads?|classifiers?|embed_out|unembed(ding)?|(to_)?logits?|readout|"
    r"output_(layer|proj|projection)|score"
)
TOP_HEADS = re.compile(r"fc|out|output|decoder|proj_out")
"""Names that mean the head only for a single layer at the top level."""


def output_heads(model: nn.Module) -> set[int]:
    """The ``id``s of the layers that compute the model's outputs.

    Sources are the model's own methods (``get_output_embeddings()`` in transformers, ``get_classifier()`` in timm) and
    module names outside numbered blocks. The position does not count: a Sequential's last layer may be hidden.
    """
    inner = _unwrap(model)
    heads = [_call_method(inner, method) for method in ("get_output_embeddings", "get_classifier")]
    for path, module in inner.named_modules():
        *above, last = path.split(".")
        inside_block = any(part.isdecimal() for part in above)
        top = not above and TOP_HEADS.fullmatch(last) and isinstance(module, (nn.Linear, _ConvNd))
        readout = type(module).__name__ in ("MuReadout", "MuSharedReadout")
        if readout or top or (not inside_block and HEADS.fullmatch(last)):
            heads.extend(module if isinstance(module, nn.ModuleList) else [module])
    return {id(layer) for each in heads if (layer := _last_layer(each)) is not None}


def _unwrap(model: nn.Module) -> nn.Module:
    """The model inside wrappers such as DistributedDataParallel and torch.compile."""
    while list(model._modules) in (["module"], ["_orig_mod"]):
        (model,) = model.children()
    return model


def _call_method(model: nn.Module, method: str) -> nn.Module | None:
    try:
        result = getattr(model, method)()
    except (AttributeError, RuntimeError, TypeError):  # the model has no such method, or no head
        return None
    return result if isinstance(result, nn.Module) else None


def _last_layer(module: nn.Module | None) -> nn.Module | None:
    """The last linear or convolution layer in ``module``, which may be ``module`` itself."""
    layers = [] if module is None else [m for m in module.modules() if isinstance(m, (nn.Linear, _ConvNd))]
    return layers[-1] if layers else None


__all__ = ["VECTORS", "Owner", "Trait", "long_axes", "output_heads", "owners", "recognize"]
