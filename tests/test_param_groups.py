"""How a model's parameters are sorted into groups."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden_data import artifact
from margins import check_close
from models import GPT, Conv1D, Experts, LlamaRMSNorm, MyConv, Raw, Transposed, ViT, VocabParallelEmbedding
from rounding import simulate
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pylo_zoo.errors import ZooError
from pylo_zoo.optim import CELO2, ELO, AdafacLO, VeLO, param_groups, routes


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.conv = nn.Conv2d(3, 3, 3)
        self.norm = nn.LayerNorm(6)
        self.experts = nn.Parameter(torch.randn(2, 6, 4))
        self.gate = nn.Linear(6, 2, bias=False)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight  # tied
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_routes_have_layout_rule_and_reason() -> None:
    result = {route.name: (route.layout, route.rule) for route in routes(Model())}
    assert result == {
        "experts": ("jax", "learned"),
        "embed.weight": ("jax", "adamw"),
        "conv.weight": ("torch", "learned"),
        "conv.bias": ("torch", None),
        "norm.weight": ("torch", None),
        "norm.bias": ("torch", None),
        "gate.weight": ("torch", "learned"),
    }
    assert all(route.reason for route in routes(Model()))


TORCH, JAX = ("torch", "learned"), ("jax", "learned")
ADAMW, AUTO = ("jax", "adamw"), ("torch", None)
TABLE_LORA = ("torch", "adamw")


def adapter(name: str, *shape: int) -> nn.Module:
    """A parameter per adapter in a ParameterDict, as peft stores parameters outside a module."""
    model = nn.Module()
    model.register_module(name, nn.ParameterDict({"default": nn.Parameter(torch.randn(shape))}))
    return model


TABLE: dict[str, tuple[Callable[[], nn.Module], str, str, tuple[str, str | None], str]] = {
    # module, parameter, kind, (layout, rule), a word of the reason
    "embedding bag": (lambda: nn.EmbeddingBag(9, 4), "weight", "embedding", ADAMW, "vocabulary"),
    "parallel embedding": (VocabParallelEmbedding, "weight", "table", ADAMW, "by its name"),
    "linear": (lambda: nn.Linear(3, 4), "weight", "matrix", TORCH, "(out, in)"),
    "bias": (lambda: nn.Linear(3, 4), "bias", "bias", AUTO, "bias"),
    "batch norm": (lambda: nn.BatchNorm2d(4), "weight", "norm", AUTO, "BatchNorm2d"),
    "group norm": (lambda: nn.GroupNorm(2, 4), "bias", "norm", AUTO, "GroupNorm"),
    "RMS norm": (lambda: nn.RMSNorm(4), "weight", "norm", AUTO, "RMSNorm"),
    "custom norm": (lambda: LlamaRMSNorm((4,)), "weight", "norm", AUTO, "LlamaRMSNorm"),
    "norm of matrices": (lambda: nn.LayerNorm([4, 5]), "weight", "norm", ADAMW, "not a matrix"),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), "weight", "convolution", TORCH, "2 groups"),
    "depthwise": (lambda: nn.Conv1d(4, 8, 3, groups=4), "weight", "convolution", TORCH, "depthwise"),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3), "weight", "convolution", TORCH, "transposed"),
    "custom convolution": (MyConv, "weight", "convolution", TORCH, "by its module"),
    "attention": (lambda: nn.MultiheadAttention(4, 2), "in_proj_weight", "matrix", TORCH, "fused"),
    "attention, keys": (lambda: nn.MultiheadAttention(4, 2, kdim=3), "k_proj_weight", "matrix", TORCH, "(out, in)"),
    "attention, token": (lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True), "bias_k", "vector", ADAMW, "broadcast"),
    "LSTM": (lambda: nn.LSTM(3, 4, proj_size=2), "weight_ih_l0", "matrix", TORCH, "4 fused gates"),
    "LSTM projection": (lambda: nn.LSTM(3, 4, proj_size=2), "weight_hr_l0", "matrix", TORCH, "(out, in)"),
    "GRU cell": (lambda: nn.GRUCell(3, 4), "weight_hh", "matrix", TORCH, "3 fused gates"),
    "LSTM bias": (lambda: nn.LSTM(3, 4), "bias_ih_l0", "bias", AUTO, "bias"),
    "bilinear": (lambda: nn.Bilinear(3, 4, 5), "weight", "stack", JAX, "(in1, in2)"),
    "GPT-2's Conv1D": (lambda: Conv1D(6, 2), "weight", "matrix", JAX, "(in, out)"),
    "qkv": (lambda: nn.ModuleDict({"qkv": nn.Linear(4, 12)}), "qkv.weight", "matrix", TORCH, "fused"),
    "LoRA": (lambda: nn.ModuleDict({"lora_A": nn.Linear(9, 2)}), "lora_A.weight", "matrix", TORCH, "low-rank"),
    "PEFT, embedding A": (
        lambda: adapter("lora_embedding_A", 2, 9),
        "lora_embedding_A.default",
        "table",
        TABLE_LORA,
        "embedding",
    ),
    "PEFT, embedding B": (
        lambda: adapter("lora_embedding_B", 4, 2),
        "lora_embedding_B.default",
        "table",
        TABLE_LORA,
        "embedding",
    ),
    "PEFT, tokens": (
        lambda: adapter("trainable_tokens_delta", 3, 4),
        "trainable_tokens_delta.default",
        "table",
        ADAMW,
        "name",
    ),
    "PEFT, AdaLoRA A": (lambda: adapter("lora_A", 2, 9), "lora_A.default", "matrix", TORCH, "low-rank"),
    "PEFT, AdaLoRA E": (lambda: adapter("lora_E", 2, 1), "lora_E.default", "vector", ADAMW, "broadcast"),
    "PEFT, DoRA": (
        lambda: adapter("lora_magnitude_vector", 4),
        "lora_magnitude_vector.default",
        "vector",
        AUTO,
        "vector",
    ),
    "PEFT, DoRA conv": (
        lambda: adapter("lora_magnitude_vector", 1, 4, 1, 1),
        "lora_magnitude_vector.default",
        "vector",
        ADAMW,
        "broadcast",
    ),
    "PEFT, IA3": (lambda: adapter("ia3_l", 4, 1), "ia3_l.default", "vector", ADAMW, "broadcast"),
    "PEFT, prompt": (
        lambda: nn.ModuleDict(
            {"prompt_encoder": nn.ModuleDict({"default": nn.ModuleDict({"embedding": nn.Embedding(9, 4)})})}
        ),
        "prompt_encoder.default.embedding.weight",
        "embedding",
        ADAMW,
        "vocabulary",
    ),
    "dict of tables": (lambda: adapter("embeddings", 9, 4), "embeddings.default", "table", ADAMW, "name"),
    "list at the top": (lambda: nn.ParameterList([torch.ones(5, 4)]), "0", "matrix", TORCH, "read as"),
    "scale": (lambda: Raw("gamma", 4, 1, 1), "gamma", "vector", ADAMW, "broadcast"),
    "scalar": (lambda: Raw("temperature"), "temperature", "vector", AUTO, "scalar"),
    "class token": (lambda: Raw("cls_token", 1, 1, 4), "cls_token", "vector", ADAMW, "broadcast"),
    "positions": (lambda: Raw("pos_embed", 1, 5, 4), "pos_embed", "table", ADAMW, "by its name"),
    "unnamed table": (lambda: Raw("anchors", 1, 5, 4), "anchors", "table", ADAMW, "over the batch"),
    "relative bias": (
        lambda: Raw("relative_position_bias_table", 9, 2),
        "relative_position_bias_table",
        "table",
        ADAMW,
        "name",
    ),
    "experts": (lambda: Raw("experts", 1, 5, 4), "experts", "stack", JAX, "(experts, in, out)"),
    "stack": (lambda: Raw("w1", 3, 5, 4), "w1", "stack", JAX, "(stack, in, out)"),
    "stacked biases": (lambda: Experts(False, 4, 4), "gate_up_proj_bias", "bias", ADAMW, "stacked"),
    "Mamba": (lambda: Raw("A_log", 6, 4), "A_log", "vector", ADAMW, "state space"),
    "raw matrix": (lambda: Raw("w1", 5, 4), "w1", "matrix", TORCH, "read as"),
    "raw convolution": (lambda: Raw("w1", 5, 4, 3, 3), "w1", "convolution", TORCH, "read as"),
    "tall": (lambda: Raw("weights", 5000, 2), "weights", "matrix", TORCH, "adamw="),
    "list": (lambda: nn.ModuleDict({"pos": nn.ParameterList([torch.ones(5, 4)])}), "pos.0", "table", ADAMW, "name"),
    "weight norm, size": (
        lambda: parametrizations.weight_norm(nn.Linear(3, 4)),
        "parametrizations.weight.original0",
        "vector",
        ("torch", "adamw"),
        "magnitudes",
    ),
    "weight norm, direction": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 2))),
        "0.parametrizations.weight.original1",
        "convolution",
        TORCH,
        "convolution",
    ),
    "spectral norm": (
        lambda: parametrizations.spectral_norm(nn.Embedding(9, 4)),
        "parametrizations.weight.original",
        "embedding",
        ADAMW,
        "vocabulary",
    ),
}


@pytest.mark.parametrize("case", TABLE.values(), ids=TABLE)
def test_each_kind_of_parameter_is_recognized(case: Any) -> None:
    make, name, kind, decision, word = case
    (route,) = [route for route in routes(make()) if route.name == name]
    assert (route.kind, (route.layout, route.rule)) == (kind, decision)
    assert word in route.reason


def by_name(*args: Any, **options: Any) -> dict[str, Any]:
    return {route.name: route for route in routes(*args, **options)}


# --- heads and shared parameters -------------------------------------------------------------------------------------


def test_a_tied_head_is_the_embedding_and_an_untied_one_is_separate() -> None:
    tied, untied = by_name(GPT(tied=True)), by_name(GPT(tied=False))
    assert "lm_head.weight" not in tied
    assert tied["wte.weight"].tied == ("lm_head.weight",)
    assert (tied["wte.weight"].kind, tied["wte.weight"].rule) == ("embedding", "adamw")
    assert (untied["lm_head.weight"].kind, untied["lm_head.weight"].rule) == ("head", "adamw")
    assert by_name(GPT(tied=False), head="learned")["lm_head.weight"].rule == "learned"
    assert by_name(GPT(tied=True), head="learned")["wte.weight"].rule == "adamw"


def test_a_tied_head_that_comes_first_is_still_the_embedding() -> None:
    model = nn.ModuleDict({"lm_head": nn.Linear(4, 9, bias=False), "wte": nn.Embedding(9, 4)})
    model["wte"].weight = model["lm_head"].weight
    (route,) = routes(model)
    assert (route.name, route.tied, route.kind) == ("lm_head.weight", ("wte.weight",), "embedding")
    assert (route.name, route.layout) == (next(model.named_parameters())[0], "jax")


def test_a_head_tied_to_a_custom_table_is_the_table() -> None:
    model = nn.ModuleDict({"lm_head": nn.Linear(4, 12, bias=False), "words": VocabParallelEmbedding()})
    model["words"].weight = model["lm_head"].weight
    assert [(route.kind, route.layout) for route in routes(model)] == [("table", "jax")]


@pytest.mark.parametrize(
    ("model", "heads"),
    [
        (ViT(), {"head.weight"}),
        (nn.ModuleDict({"fc": nn.Linear(4, 2)}), {"fc.weight"}),
        (nn.ModuleDict({"mlp": nn.ModuleDict({"fc": nn.Linear(4, 2)})}), set()),
        (nn.ModuleDict({"module": nn.ModuleDict({"fc": nn.Linear(4, 2)})}), {"module.fc.weight"}),
        (
            nn.ModuleDict({"heads": nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 3)])}),
            {"heads.0.weight", "heads.1.weight"},
        ),
        (
            nn.ModuleDict({"classifier": nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))}),
            {"classifier.2.weight"},
        ),
        (nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"head": nn.Linear(4, 2)})])}), set()),
        (nn.ModuleDict({"decoder": nn.TransformerDecoderLayer(4, 2, 8)}), set()),
        (nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), set()),
    ],
)
def test_heads_are_identified_by_the_model_and_by_names_outside_blocks(model: nn.Module, heads: set[str]) -> None:
    assert {route.name for route in routes(model) if route.kind == "head"} == heads


def test_the_models_own_head_takes_precedence_over_names() -> None:
    class HeadModel(nn.Sequential):
        def get_output_embeddings(self) -> nn.Module:
            return self[1]

    class Refuses(nn.Sequential):
        def get_output_embeddings(self) -> nn.Module:
            raise RuntimeError("this model has none")

    layers = nn.Linear(4, 8), nn.Linear(8, 2)
    assert [route.name for route in routes(HeadModel(*layers)) if route.kind == "head"] == ["1.weight"]
    assert not [route for route in routes(Refuses(*layers)) if route.kind == "head"]


# --- patterns and options --------------------------------------------------------------------------------------------


def test_names_and_patterns_override() -> None:
    result = by_name(Model(), adamw=["gate.*"], learned="embed.weight")
    assert (result["gate.weight"].rule, result["embed.weight"].rule) == ("adamw", "learned")
    assert "gate.*" in result["gate.weight"].reason
    # a module's name selects all its parameters; any name of a shared parameter works; the more specific pattern wins
    result = by_name(Model(), learned="*", adamw=["conv", "head.weight"])
    rules = {name: route.rule for name, route in result.items()}
    assert {name for name, rule in rules.items() if rule == "adamw"} == {"conv.weight", "conv.bias", "embed.weight"}
    assert set(rules.values()) == {"adamw", "learned"}


def test_patterns_set_layouts_and_options() -> None:
    result = by_name(
        Model(),
        layouts={"exp*": "torch-stacked"},
        options={"*": {"lr": 1.0}, "conv": {"lr": 2.0, "weight_decay": 0.5}, "conv.bias": {"lr": 3.0}},
        weight_decay=0.1,
        decay_vectors=False,
    )
    assert result["experts"].layout == "torch-stacked"
    both = by_name(Model(), layouts={"exp*": "torch-stacked"}, adamw="experts")["experts"].reason
    assert both == "named by adamw='experts': stack, layout by layouts['exp*']"
    assert dict(result["conv.weight"].options) == {"lr": 2.0, "weight_decay": 0.5}
    assert dict(result["conv.bias"].options) == {"lr": 3.0, "weight_decay": 0.5}
    assert dict(result["norm.weight"].options) == {"lr": 1.0, "weight_decay": 0.0}
    assert dict(result["gate.weight"].options) == {"lr": 1.0, "weight_decay": 0.1}
    options = by_name(Model(), adam_weight_decay=0.3, decay_vectors=False)["norm.bias"].options
    assert dict(options) == {"adam_weight_decay": 0.0, "weight_decay": 0.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adamw": ["gates"]}, "'gates'.* Did you mean 'gate'"),
        ({"learned": "embedd.*"}, "Did you mean 'embed'"),
        ({"layouts": {"xyz": "jax"}}, "'xyz'. Names are"),
        ({"options": {"hed.*": {}}}, "Did you mean 'head'"),
        ({"layouts": {"experts": "rows"}}, "layout is 'rows'. Use one of torch, jax, torch-stacked"),
        ({"options": {"gate": {"rule": "adamw"}}}, r"\['rule'\] are not group options"),
        ({"layout": "jax"}, r"\['layout'\] are not group options"),
        ({"head": "sgd"}, "head is 'sgd'"),
        ({"adamw": "gate", "learned": "gate"}, r"\['gate'\] are in"),
    ],
)
def test_unmatched_or_contradicting_patterns_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        param_groups(Model(), **options)


def test_a_pattern_can_match_frozen_parameters() -> None:
    assert [route.name for route in routes(Model(), adamw="frozen")] == [route.name for route in routes(Model())]


def test_a_model_without_modules_or_shapes_is_an_error() -> None:
    with pytest.raises(ZooError, match="as groups="):
        param_groups(list(Model().parameters()))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ZooError, match=r"0.weight has no shape yet"):
        param_groups(nn.Sequential(nn.LazyLinear(3)))


# --- groups ----------------------------------------------------------------------------------------------------------


def test_groups_hold_each_parameter_once_with_its_name_and_the_users_options() -> None:
    model = Model()
    groups = param_groups(model, weight_decay=0.1)
    grouped = [p for group in groups for p in group["params"]]
    named = {name: p for group in groups for name, p in zip(group["param_names"], group["params"], strict=True)}
    assert len(grouped) == len({id(p) for p in grouped}) == 7
    assert all(p is model.get_parameter(name) for name, p in named.items())
    assert all(group["weight_decay"] == 0.1 for group in groups)
    assert not any(p is model.frozen.weight for p in grouped)
    assert len({(group["layout"], group["rule"]) for group in groups}) == len(groups)


def test_the_users_own_groups_are_split_and_keep_their_options() -> None:
    model, lr = Model(), torch.tensor(0.5)
    mine = [
        {"params": model.conv.parameters(), "lr": lr, "name": "early"},
        {"params": [("embed.weight", model.embed.weight), ("frozen.weight", model.frozen.weight)], "rule": "learned"},
        {"params": model.experts, "layout": "torch-stacked", "weight_decay": 0.5},
    ]
    groups = param_groups(model, mine, weight_decay=0.1)
    assert [(group["param_names"], group["rule"], group["weight_decay"]) for group in groups] == [
        (["conv.weight"], "learned", 0.1),
        (["conv.bias"], None, 0.1),
        (["embed.weight"], "learned", 0.1),
        (["experts"], "learned", 0.5),
    ]
    assert all(group["lr"] is lr and group["name"] == "early" for group in groups[:2])
    assert groups[3]["layout"] == "torch-stacked"
    alone = param_groups(model, model.named_parameters())
    assert [group["param_names"] for group in alone] == [group["param_names"] for group in param_groups(model)]


def test_groups_that_do_not_fit_the_model_are_errors() -> None:
    model = Model()
    spent = model.parameters()
    list(spent)
    for groups, message in (
        ([{"params": spent}], "exhausted"),
        ([torch.ones(3)], r"not a parameter of the model: shape \(3,\)"),
        ([{"params": [model.experts]}, {"params": [model.experts]}], "is in two groups"),
        ([{"params": [model.experts]}, model.experts], "Group 1 is not a parameter group"),
    ):
        with pytest.raises(ZooError, match=message):
            param_groups(model, groups)


@pytest.mark.parametrize(("cls", "case", "more"), [(CELO2, "celo2", {}), (VeLO, "velo_small", {"num_steps": 5})])
def test_every_optimizer_takes_the_groups(cls: type, case: str, more: dict[str, int]) -> None:
    model = Model()
    optimizer = cls(param_groups(model), weights=artifact(case), **more)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step(loss=1.0)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    state = copy.deepcopy(optimizer.state_dict())
    cls(param_groups(model), weights=artifact(case), **more).load_state_dict(state)


def test_celo2_routes_the_head_to_adamw_by_default() -> None:
    for options, expected in (({}, True), ({"head": "learned"}, False), ({"learned": "*"}, False)):
        model = GPT(tied=False)
        optimizer = CELO2(param_groups(model, **options), weights=artifact("celo2"))  # pyright: ignore
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        assert ("step" in optimizer.state[model.lm_head.weight]) is expected  # AdamW alone counts its steps


# --- stacks stored as (experts, out, in) -----------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "case"), [(CELO2, "celo2"), (ELO, "elo"), (AdafacLO, "small_fc_lopt")])
def test_a_stack_in_torch_layout_moves_as_its_transpose_in_jax_layout(cls: type, case: str) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 6, 6, generator=generator)  # square, so only the order of axes decides
    gradients = [torch.randn(3, 6, 6, generator=generator) for _ in range(3)]

    def moved(
        model: nn.Module, p: Tensor, transpose: bool, dtype: torch.dtype = torch.float32, **options: Any
    ) -> Tensor:
        optimizer = cls(param_groups(model, lr=0.1, **options), weights=artifact(case))
        for g in gradients:
            p.grad = (g.mT.contiguous() if transpose else g).to(dtype)
            optimizer.step()
        return (p.detach().mT if transpose else p.detach()) - start

    def of_transposed(**options: Any) -> Tensor:
        model = Transposed(start)
        return moved(model, model.experts["down_proj"], True, **options)

    stack = Raw("experts", 3, 6, 6)
    stack.experts.data.copy_(start)  # pyright: ignore
    expected = moved(stack, stack.experts, False)  # pyright: ignore
    right = of_transposed(layouts={"experts": "torch-stacked"})

    def double() -> list[Tensor]:
        model = Raw("experts", 3, 6, 6).double()
        model.experts.data.copy_(start)  # pyright: ignore
        return [moved(model, model.experts, False, dtype=torch.float64)]  # pyright: ignore

    check_close(right, expected, 2 * simulate(double).distance(0))
    wrong = of_transposed()  # read as (experts, in, out)
    assert float((wrong - expected).norm() / expected.norm()) > 0.05


@pytest.mark.parametrize("hidden", [2, 3, 4])  # at 2 the up projections are square, at 4 the down projection is
@pytest.mark.parametrize("transposed", [True, False])
def test_shapes_of_up_and_down_projections_determine_the_layout_of_a_stack(transposed: bool, hidden: int) -> None:
    result = by_name(Experts(transposed, dim=4, hidden=hidden))
    expected = "torch-stacked" if transposed else "jax"
    assert [result[name].layout for name in ("gate_up_proj", "down_proj")] == [expected] * 2
    assert all("as the module's shapes fit" in result[name].reason for name in ("gate_up_proj", "down_proj"))


def test_a_stack_without_such_a_pair_is_read_in_jax_layout() -> None:
    alone = by_name(Raw("experts", 2, 4, 4))["experts"]
    assert alone.layout == "jax"
    assert 'set its layout to "torch-stacked"' in alone.reason


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table_is_complete_and_merges_numbered_layers() -> None:
    text = str(routes(GPT(tied=True), weight_decay=0.1, decay_vectors=False))
    lines = text.splitlines()
    assert lines[0].split() == ["parameter", "shape", "layout", "rule", "weight_decay", "why"]
    (line,) = [line for line in lines if line.startswith("h.*.mlp.0.weight (3)")]
    assert line.split()[2:] == ["32×8", "torch", "learned", "0.1", "matrix", "(out,", "in)"]
    assert lines[2].endswith("tied with lm_head.weight")
    assert len({line.index(cell) for line, cell in zip(lines[2:5], ("adamw", "adamw", "auto"), strict=True)}) == 1
    named = nn.ModuleDict({f"encoder_layer_{i}": nn.ModuleDict({"ln_1": nn.LayerNorm(2)}) for i in range(3)})
    assert "*.ln_1.weight (3) " in str(routes(named))
    whole = routes(GPT(tied=True)).table(collapse=False)
    assert "h.2.mlp.0.weight" in whole
    assert "(3)" not in whole


def test_the_table_counts_by_rule_and_names_omitted_parameters() -> None:
    *_, numbers, auto, frozen = str(routes(Model())).splitlines()
    assert numbers == "7 parameters, 222 elements: learned 141, adamw 66, auto 15"
    assert "CELO2-base" in auto
    assert frozen.endswith("2 (frozen.weight, frozen.bias)")
    assert "0 parameters" in str(routes(nn.ReLU()))
