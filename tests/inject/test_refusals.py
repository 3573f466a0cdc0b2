"""Wrong requests are refused with these messages, and nothing is changed by them."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import lorakit
from lorakit import LowRank, Spec, errors
from lorakit.errors import (
    AdapterMismatch,
    AdapterNameError,
    LorakitError,
    MergeError,
    SpecError,
    TargetError,
)

from ..laws.models import bert, gpt2, llama
from ..laws.table import fill, same_bits, state


def refused(kind: type[LorakitError], call: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def sequential() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))


def attached(name: str = "default", **fields: object) -> nn.Sequential:
    model = sequential()
    fill(lorakit.attach(model, Spec(**{"rank": 2, **fields}), name=name))
    return model


SPECS = {
    "rank 0": ({"rank": 0}, "rank: a whole number of at least 1 is needed, got 0"),
    "rank is a float": ({"rank": 4.0}, "rank: a whole number of at least 1 is needed, got 4.0"),
    "rank is a bool": ({"rank": True}, "rank: a whole number of at least 1 is needed, got True"),
    "alpha beyond float32": (
        {"alpha": 1e308},
        "alpha: a finite float32 number other than 0 is needed, got 1e+308",
    ),
    "alpha beyond float": (
        {"alpha": 10**400},
        "alpha: a finite float32 number other than 0 is needed, got 1000000",
    ),
    "alpha 0": ({"alpha": 0}, "alpha: a finite float32 number other than 0 is needed, got 0"),
    "alpha not finite": (
        {"alpha": float("inf")},
        "alpha: a finite float32 number other than 0 is needed, got inf",
    ),
    "dropout above 1": ({"dropout": 1.5}, "dropout: a probability from 0 to 1 is needed, got 1.5"),
    "dropout NaN": (
        {"dropout": float("nan")},
        "dropout: a probability from 0 to 1 is needed, got nan",
    ),
    "scale rule": (
        {"scale_rule": "alpha/sqr(rank)"},
        "scale_rule: 'alpha/sqr(rank)' is none of alpha/rank, alpha/sqrt(rank); did you mean "
        "'alpha/sqrt(rank)'",
    ),
    "init": (
        {"init": "kaming"},
        "init: 'kaming' is none of kaiming, gaussian, orthogonal, pissa, pissa-fast, olora, "
        "eva, lora-ga; did you mean 'kaiming'?",
    ),
    "init_std without gaussian": (
        {"init_std": 0.1},
        "init_std: only init='gaussian' has a standard deviation, asked for init='kaiming'",
    ),
    "init_std 0": (
        {"init": "gaussian", "init_std": 0},
        "init_std: a positive number is needed, got 0",
    ),
    "init_std is a bool": (
        {"init": "gaussian", "init_std": True},
        "init_std: a positive number is needed, got True",
    ),
    "bias": ({"bias": "lora_only"}, "bias: 'lora_only' is none of none, all, adapted"),
    "dtype": ({"dtype": "int8"}, "dtype: 'int8' is none of float32, bfloat16, float16, float64"),
    "no targets": (
        {"targets": []},
        "targets: empty; targets='none' trains only biases or full modules",
    ),
    "blank target": ({"targets": ["q_proj", " "]}, "targets: ' ' is no name pattern"),
    "target is a number": ({"targets": 5}, "targets: 5 is no name pattern"),
    "exclude is None": ({"exclude": None}, "exclude: None is no name pattern"),
    "overrides is a list": (
        {"overrides": ["a"]},
        "overrides: {pattern: {field: value}} is needed, got ['a']",
    ),
    "override is a number": (
        {"overrides": {"a": 3}},
        "overrides: {pattern: {field: value}} is needed, got {'a': 3}",
    ),
    "override of no field": (
        {"overrides": {"a": {"ranks": 3}}},
        "overrides['a']: 'ranks' cannot be overridden; did you mean 'rank'?",
    ),
    "override out of range": (
        {"overrides": {"a": {"rank": 0}}},
        "overrides['a'].rank: a whole number of at least 1 is needed, got 0",
    ),
    "override init_std": (
        {"overrides": {"a": {"init_std": 0.5}}},
        "overrides['a'].init_std: only init='gaussian' has a standard deviation, asked for "
        "init='kaiming'",
    ),
}


@pytest.mark.parametrize("case", SPECS)
def test_spec_is_refused(case: str) -> None:
    fields, text = SPECS[case]
    message = refused(SpecError, lambda: Spec(**fields))
    assert message.startswith("1 fault in the spec.\n") and text in message
    assert message.endswith("Nothing was attached.")


def test_all_faults_of_a_spec_are_named_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        Spec(
            rank=0,
            alpha=float("nan"),
            dropout=2,
            init="x",
            bias="y",
            overrides={"a": {"dropout": -1}},
        )
    assert len(caught.value.faults) == 6
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [
        "rank",
        "alpha",
        "dropout",
        "init",
        "bias",
        "overrides['a'].dropout",
    ]
    assert isinstance(caught.value, ValueError)


def test_unknown_field_is_refused() -> None:
    message = refused(SpecError, lambda: Spec.from_dict({"rank": 4, "rnk": 4}))
    assert message == (
        "1 unknown field of Spec.\n  'rnk' is no field of Spec; did you mean 'rank'?\n"
        "Nothing was started."
    )


class Standardized(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight / self.weight.std(), self.bias)


def cases() -> dict[str, tuple[Callable[[], nn.Module], Spec, type[LorakitError], str]]:
    few = {"rank": 2}
    return {
        "target matches nothing": (
            llama,
            Spec(targets=["k_porj"], **few),
            TargetError,
            "1 of 1 targets matches nothing in LlamaForCausalLM (1 embedding layer, 15 linear "
            "layers).\n"
            "  'k_porj'   0 layers   did you mean 'k_proj' (2 layers, 16 -> 8)?\n"
            "Nothing was attached. `lorakit inspect MODEL --targets` lists what can be named.",
        ),
        "one of several targets": (
            llama,
            Spec(targets=["q_proj", "k_porj", "v_proj"], **few),
            TargetError,
            "1 of 3 targets matches nothing in LlamaForCausalLM (1 embedding layer, 15 linear "
            "layers).\n"
            "  'k_porj'   0 layers   did you mean 'k_proj' (2 layers, 16 -> 8)?\n"
            "Matched: 'q_proj' 2 layers, 'v_proj' 2 layers. Nothing was attached. "
            "`lorakit inspect MODEL --targets` lists what can be named.",
        ),
        "regular expression matches nothing": (
            llama,
            Spec(targets=r"layers\.9\..*", **few),
            TargetError,
            "1 of 1 targets matches nothing in LlamaForCausalLM",
        ),
        "no regular expression": (
            llama,
            Spec(targets="q_proj(", **few),
            TargetError,
            "targets='q_proj(' is neither a preset nor a regular expression: ",
        ),
        "preset in a list": (
            llama,
            Spec(targets=["qv"], **few),
            TargetError,
            "'qv'   0 layers   in a list it is a name; the preset is targets='qv'",
        ),
        "preset does not fit": (
            lambda: nn.ModuleDict({"qkv": nn.Linear(4, 12)}),
            Spec(targets="qv", **few),
            TargetError,
            "The preset 'qv' does not fit ModuleDict.\n  'q'   0 layers\n  'v'   0 layers\n"
            "qkv and 0 more hold q, k and v in one matrix: targets='attention' adapts all of it; "
            "Spec(parts=…) names the outputs of each. Nothing was attached.",
        ),
        "parts of other rows": (
            gpt2,
            Spec(parts={"c_attn": {"q": 5}, "c_atn": {"q": 5}}, **few),
            TargetError,
            "2 of 2 parts fit no layer.\n"
            "  'c_attn'   its parts have 5 outputs, transformer.h.0.attn.c_attn has 48\n"
            "  'c_atn'   0 layers   did you mean 'c_attn'?\nNothing was attached.",
        ),
        "no linear layer": (
            lambda: nn.Sequential(nn.Embedding(4, 3)),
            Spec(**few),
            TargetError,
            "targets='all-linear' finds no linear layer in Sequential.\n"
            "It can adapt torchao, bitsandbytes, linear, conv1d, embedding, convolution1d, "
            "convolution2d, "
            "convolution3d, transposed1d, transposed2d, "
            "transposed3d layers; targets='none' trains biases or full modules alone. "
            "Nothing was attached.",
        ),
        "target is a container": (
            llama,
            Spec(targets=["self_attn"], **few),
            TargetError,
            "'self_attn'   0 layers   model.layers.0.self_attn is a LlamaAttention; inside it: "
            "q_proj, k_proj, v_proj, o_proj",
        ),
        "target cannot be adapted": (
            lambda: nn.Sequential(nn.Linear(2, 2), nn.PReLU()),
            Spec(targets=["1"], rank=1),
            TargetError,
            "'1'   0 layers   1 is a PReLU; it cannot be adapted",
        ),
        "dropout before a weight that is lent": (
            lambda: nn.TransformerEncoderLayer(8, 2, 16),
            Spec(targets=["out_proj"], rank=1, dropout=0.1),
            SpecError,
            "self_attn.out_proj   dropout 0.1: MultiheadAttention reads this weight itself, so the "
            "input of A cannot be seen; "
            "set it to 0 for this name with overrides",
        ),
        "rank above min(in, out)": (
            llama,
            Spec(targets="qv", rank=9),
            SpecError,
            "2 layers cannot be adapted with these settings.\n"
            "  model.layers.0.self_attn.v_proj   rank 9 is above min(in, out) = 8 (16 -> 8)\n"
            "  model.layers.1.self_attn.v_proj   rank 9 is above min(in, out) = 8 (16 -> 8)\n"
            "Nothing was attached.",
        ),
        "two faults of one layer": (
            lambda: nn.Sequential(nn.Linear(4, 4)),
            Spec(targets=["0"], rank=9, delta="dora", init="pissa"),
            SpecError,
            "1 layer cannot be adapted with these settings.\n"
            "  0   rank 9 is above min(in, out) = 4 (4 -> 4)\n"
            "  0   init 'pissa' cannot start delta 'dora', only 'lora'\nNothing was attached.",
        ),
        "rank above a convolution's": (
            lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(4, 4, 1, groups=4)),
            Spec(targets="conv", rank=9),
            SpecError,
            "2 layers cannot be adapted with these settings.\n"
            "  0   rank 9 is above min(in, out) = 8 (18 -> 8)\n"
            "  1   rank 9 is above min(in, out) = 1 (1 -> 4)\nNothing was attached.",
        ),
        "rank above a transposed convolution's": (
            lambda: nn.Sequential(nn.ConvTranspose2d(12, 4, (2, 1), groups=2)),
            Spec(targets="conv", rank=5),
            SpecError,
            "0   rank 5 is above min(in, out x kernel) = 4 (12 -> 4)",
        ),
        "no convolution": (
            llama,
            Spec(targets="conv", **few),
            TargetError,
            "targets='conv' finds no convolution in LlamaForCausalLM.\nNothing was attached.",
        ),
        "a convolution with a forward of its own": (
            lambda: nn.Sequential(nn.Linear(2, 2), Standardized(2, 2, 1)),
            Spec(targets=["1"], rank=1),
            TargetError,
            "'1'   0 layers   1 is a Standardized; it has a forward of its own",
        ),
        "dropout on an embedding": (
            llama,
            Spec(targets=["embed_tokens"], dropout=0.1, **few),
            SpecError,
            "model.embed_tokens   dropout 0.1: an embedding's input is token ids, there is nothing "
            "to drop; "
            "set it to 0 for this name with overrides",
        ),
        "embedding with max_norm": (
            lambda: nn.Sequential(nn.Embedding(9, 8, max_norm=1.0)),
            Spec(targets=["0"], **few),
            SpecError,
            "0   max_norm: the layer rescales its rows as it reads them, so a change of them "
            "cannot be merged",
        ),
        "override matches nothing": (
            llama,
            Spec(targets="qv", overrides={"q_porj": {"rank": 1}}, **few),
            TargetError,
            "1 of 1 overrides match no adapted layer.\n"
            "  'q_porj'   0 layers   did you mean 'q_proj' or 'v_proj'?\n",
        ),
        "exclude leaves nothing": (
            llama,
            Spec(targets=["q_proj"], exclude=["*self_attn*"], **few),
            TargetError,
            "exclude leaves no layer of those that targets names.\n"
            "  'q_proj'   2 layers\nNothing was attached.",
        ),
        "exclude of a preset leaves nothing": (
            llama,
            Spec(targets="mlp", exclude="mlp", **few),
            TargetError,
            "exclude leaves no layer of those that targets names.\n"
            "  'mlp'   6 layers\nNothing was attached.",
        ),
        "exclude matches nothing": (
            llama,
            Spec(targets="qv", exclude=["q_porj"], **few),
            TargetError,
            "1 of 1 exclude matches nothing in LlamaForCausalLM (1 embedding layer, 15 linear "
            "layers).\n  'q_porj'   0 layers   did you mean 'q_proj' (2 layers, 16 -> 16)?",
        ),
        "full_modules typo": (
            bert,
            Spec(targets="qv", full_modules=["clasifier"], **few),
            TargetError,
            "full_modules does not fit BertForSequenceClassification.\n"
            "  'clasifier'   no module   did you mean 'classifier'?\nNothing was attached.",
        ),
        "whole module without parameters": (
            sequential,
            Spec(targets=["0"], full_modules=["1"], **few),
            TargetError,
            "'1'   has no parameters to train",
        ),
        "whole module with buffers": (
            lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
            Spec(targets=["0"], full_modules=["1"], **few),
            TargetError,
            "'1'   holds buffers (running_mean, running_var, num_batches_tracked), which training "
            "would change in the base",
        ),
        "nothing would train": (
            llama,
            Spec(targets="none"),
            SpecError,
            "Nothing would train: targets='none', and neither bias nor full_modules select a "
            "parameter.\n"
            "Name a target, a module to train in full, or a bias mode that fits the model.",
        ),
    }


@pytest.mark.parametrize("case", cases())
def test_attach_is_refused(case: str) -> None:
    build, spec, kind, text = cases()[case]
    model = build()
    before, grads = state(model), {n: p.requires_grad for n, p in model.named_parameters()}
    message = refused(kind, lambda: lorakit.attach(model, spec))
    assert text in message
    assert same_bits(state(model), before) and lorakit.attached(model) == {}
    assert {n: p.requires_grad for n, p in model.named_parameters()} == grads
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("kind", [nn.LazyLinear, nn.LazyConv2d, nn.LazyConvTranspose1d])
def test_a_layer_without_a_shape_yet_is_refused(kind: Callable[..., nn.Module]) -> None:
    layer = kind(3) if kind is nn.LazyLinear else kind(3, 2)
    message = refused(TargetError, lambda: lorakit.select(nn.Sequential(layer), ["0"]))
    assert f"'0'   0 layers   0 is a {kind.__name__}; it is lazy: it has no shape" in message


def test_attach_takes_a_spec_or_an_adapter() -> None:
    message = refused(SpecError, lambda: lorakit.attach(sequential(), "out/"))
    assert message == (
        "A model and a Spec or an Adapter are needed, got Sequential and str.\n"
        "Adapter.load(folder) reads one from disk. Nothing was attached."
    )
    swapped: tuple = (Spec(rank=2), sequential())
    assert "got Spec and Sequential." in refused(SpecError, lambda: lorakit.attach(*swapped))


@pytest.mark.parametrize("name", ["", "a.b", "a:b", "a/b", "a b", "training", 5])
def test_adapter_name_is_refused(name: object) -> None:
    message = refused(
        AdapterNameError, lambda: lorakit.attach(sequential(), Spec(rank=1), name=name)
    )
    assert (
        message == f"{name!r} cannot name an adapter: use a word without '.', ':', '/' or spaces."
    )


@pytest.mark.parametrize(
    "name", ["train", "forward", "state", "site", "path", "_modules", "lorakit", "put"]
)
def test_adapter_may_be_called_like_a_part_of_a_module(name: str) -> None:
    model = attached(name)
    x = torch.ones(2, 6)
    on = model(x)
    model.train().eval().to(torch.float64).to(torch.float32)
    assert torch.equal(model(x), on) and torch.equal(copy.deepcopy(model)(x), on)
    lorakit.enable(model, None)
    assert not torch.equal(model(x), on)
    lorakit.detach(model, name)
    assert [n for n, _ in model.named_modules()] == ["", "0", "1", "2"]


def test_name_is_taken() -> None:
    message = refused(AdapterNameError, lambda: lorakit.attach(attached(), Spec(rank=1)))
    assert (
        message
        == "An adapter 'default' is attached already.\nAttached: 'default'. Give another name."
    )


def test_enable_is_refused() -> None:
    model = attached("style")
    assert refused(AdapterNameError, lambda: lorakit.enable(model, ["styl", "tone"])) == (
        "These adapters cannot be enabled.\n"
        "  'styl'   is not attached   did you mean 'style'?\n  'tone'   is not attached\n"
        "Attached: 'style'. Nothing was switched."
    )
    for weight in (float("nan"), float("inf"), True, "1"):
        message = refused(
            AdapterNameError, lambda weight=weight: lorakit.enable(model, {"style": weight})
        )
        assert (
            f"  'style'   has weight {weight!r}, which is not a finite float32 number\n" in message
        )
    assert lorakit.enabled(model) == {"style": 1.0}
    assert refused(AdapterNameError, lambda: lorakit.enable(sequential(), None)) == (
        "No adapter is attached to this Sequential.\nCall attach first."
    )


def test_full_parameters_are_on_or_off() -> None:
    model = attached("one", targets=["0"], full_modules=["2"])
    spec = Spec(rank=2, targets=["0"], full_modules=["2"])

    def two() -> None:
        lorakit.attach(model, spec, name="two")

    assert refused(AdapterMismatch, two) == (
        "Two enabled adapters cannot train the same parameters.\n"
        "  2.weight   is trained in full by 'one' and 'two'\n"
        "  2.bias   is trained in full by 'one' and 'two'\n"
        "Disable the other first: enable(model, None). Nothing was attached."
    )
    assert refused(AdapterMismatch, lambda: lorakit.enable(model, {"one": 0.5})) == (
        "These cannot be enabled together, or not at this weight.\n"
        "  'one'   has weight 0.5, but trains parameters in full: it can only be on (1) or off\n"
        "Nothing was switched."
    )
    lorakit.enable(model, None)
    two()
    message = refused(AdapterMismatch, lambda: lorakit.enable(model, ["one", "two"]))
    assert "  2.weight   is trained in full by 'one' and 'two'\n" in message
    lorakit.enable(model, None)
    fill(lorakit.attach(model, Spec(rank=2, targets=["2"]), name="three"))
    message = refused(AdapterMismatch, lambda: lorakit.enable(model, ["one", "three"]))
    assert "  2.weight   is trained in full by 'one' and adapted by 'three'\n" in message


def test_merged_model_refuses_what_would_be_wrong() -> None:
    model = attached()
    before = state(model)
    undo = lorakit.merge(model)
    merged = state(model)
    assert (
        refused(MergeError, lambda: lorakit.merge(model))
        == "The model is merged already.\nCall unmerge first."
    )
    assert refused(MergeError, lambda: lorakit.enable(model, "default")) == (
        "The model is merged: its weights hold the adapters already.\nCall unmerge first."
    )
    assert refused(MergeError, lambda: lorakit.attach(model, Spec(rank=1), name="b")) == (
        "The model is merged; what is attached now would be trained on other weights.\n"
        "Call unmerge, or detach to keep the merged weights as a new base."
    )
    foreign = lorakit.merge(attached())
    assert refused(MergeError, lambda: lorakit.unmerge(model, foreign)) == (
        "This Undo belongs to another merge.\nNothing was changed."
    )
    assert same_bits(state(model), merged)
    lorakit.unmerge(model, undo)
    assert same_bits(state(model), before)
    assert (
        refused(MergeError, lambda: lorakit.unmerge(model, undo))
        == "The model is not merged.\nNothing was changed."
    )
    lorakit.enable(model, None)
    assert refused(MergeError, lambda: lorakit.merge(model)) == (
        "No adapter is on: the merged model would equal the base.\nCall enable with a name."
    )


def test_one_of_several_cannot_leave_a_merged_model() -> None:
    model = attached("a")
    lorakit.attach(model, Spec(rank=1), name="b")
    lorakit.merge(model)
    assert refused(MergeError, lambda: lorakit.detach(model, "a")) == (
        "The model is merged: one adapter of several cannot be taken off.\nCall unmerge first."
    )


def test_merge_of_what_is_not_finite_is_refused() -> None:
    model = sequential().to(torch.float16)
    adapter = fill(lorakit.attach(model, Spec(rank=2)))
    adapter.deltas["2"].B.data.mul_(1e6)
    before = state(model)
    assert refused(MergeError, lambda: lorakit.merge(model)) == (
        "The sum for 2.weight is not finite in torch.float16.\nNothing was changed."
    )
    assert same_bits(state(model), before) and lorakit.enabled(model) == {"default": 1.0}
    model = attached(bias="all")
    next(iter(lorakit.attached(model)["default"].full_parameters.values())).data.fill_(float("nan"))
    assert "  0.bias   is not finite in the adapter\n" in refused(
        MergeError, lambda: lorakit.merge(model)
    )


def test_detach_of_an_unknown_name_is_refused() -> None:
    model = attached("style")
    assert refused(AdapterNameError, lambda: lorakit.detach(model, "styel")) == (
        "No adapter 'styel' is attached. Did you mean 'style'?\n"
        "Attached: 'style'. Nothing was detached."
    )
    assert refused(AdapterNameError, lambda: lorakit.detach(sequential())) == (
        "No adapter is attached to this Sequential.\nCall attach first."
    )


def test_another_part_of_the_model_is_refused() -> None:
    model = llama()
    lorakit.attach(model.model, Spec(rank=2, targets="qv"))
    for call in (
        lorakit.merge,
        lorakit.detach,
        lorakit.coverage,
        lambda m: lorakit.attach(m, Spec(rank=1), name="b"),
    ):
        assert refused(AdapterNameError, lambda call=call: call(model)) == (
            "The adapters here were attached to another module: its 'layers.0.self_attn.q_proj' is "
            "this "
            "LlamaForCausalLM's 'model.layers.0.self_attn.q_proj'.\n"
            "Call with the module that attach was given."
        )
    lorakit.detach(model.model)


def adapter_for(model: nn.Module, **fields: object) -> lorakit.Adapter:
    adapter = fill(lorakit.attach(model, Spec(**{"rank": 2, "targets": "qv", **fields})))
    lorakit.detach(model)
    return adapter


def test_misfits_are_all_listed() -> None:
    adapter = adapter_for(llama(), targets=["q_proj", "down_proj"])
    wide = llama(hidden_size=32, intermediate_size=40)
    with pytest.raises(AdapterMismatch) as caught:
        lorakit.attach(wide, adapter)
    assert caught.value.faults[:3] == [
        "model.layers.0.self_attn.q_proj   A is (2, 16), the layer takes 32",
        "model.layers.0.self_attn.q_proj   B is (16, 2), the layer gives 32",
        "model.layers.0.mlp.down_proj   A is (2, 24), the layer takes 40",
    ]
    assert str(caught.value).startswith(
        "The adapter does not fit LlamaForCausalLM: 8 faults, 8 tensors.\n"
    )
    assert str(caught.value).endswith("Nothing was attached.")
    assert lorakit.attached(wide) == {}


KERNELS = {
    "turned": (
        nn.Conv2d(4, 4, (1, 9)),
        ["0   was made for a kernel of (3, 3), the layer's is (1, 9)"],
    ),
    "a linear layer of its size": (
        nn.Linear(36, 4),
        [
            "0   was made for a layer of kind convolution2d, the model's is linear",
            "0   was made for a kernel of (3, 3), the layer's is ()",
        ],
    ),
    "other channels": (
        nn.Conv2d(2, 5, 3),
        ["0   A is (2, 36), the layer takes 18", "0   B is (4, 2), the layer gives 5"],
    ),
    "a transposed one": (
        nn.ConvTranspose2d(36, 4, 1),
        [
            "0   was made for a layer of kind convolution2d, the model's is transposed2d",
            "0   was made for a kernel of (3, 3), the layer's is ()",
        ],
    ),
}


@pytest.mark.parametrize("case", KERNELS)
def test_another_kernel_is_a_misfit(case: str, tmp_path: Path) -> None:
    layer, faults = KERNELS[case]
    adapter = adapter_for(nn.Sequential(nn.Conv2d(4, 4, 3)), targets="conv")
    for value in (adapter, lorakit.Adapter.load(adapter.save(tmp_path))):
        with pytest.raises(AdapterMismatch) as caught:
            lorakit.attach(nn.Sequential(layer), value, any_base=True)
        assert caught.value.faults == faults
    other = adapter_for(nn.Sequential(nn.Conv2d(4, 4, (1, 9))), targets="conv")
    assert torch.equal(other.deltas["0"].A, adapter.deltas["0"].A) and other != adapter


def test_more_than_twelve_faults_are_counted() -> None:
    adapter = adapter_for(llama(), targets="all-linear")
    adapter.provenance["base_model"] = "tiny/llama"
    with pytest.raises(AdapterMismatch) as caught:
        lorakit.attach(nn.Sequential(nn.Linear(3, 3)), adapter)
    assert len(caught.value.faults) == 14
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 12 + 1 + 1
    assert lines[-2] == "  … and 2 more (--json, or .faults, lists them all)"
    assert lines[-1] == "The file says it was trained on tiny/llama. Nothing was attached."


def test_another_prefix_is_hinted_at() -> None:
    adapter = adapter_for(llama())
    message = refused(AdapterMismatch, lambda: lorakit.attach(llama().model, adapter))
    assert (
        "  model.layers.0.self_attn.q_proj   is not in the model   did you mean "
        "'layers.0.self_attn.q_proj'?\n"
    ) in message


def test_adapter_of_another_kind_of_layer_is_refused() -> None:
    adapter = lorakit.Adapter(
        Spec(rank=1),
        {"0": LowRank(torch.ones(1, 6), torch.ones(5, 1), alpha=1.0, kind="embedding")},
    )
    message = refused(AdapterMismatch, lambda: lorakit.attach(sequential(), adapter))
    assert "  0   was made for a layer of kind embedding, the model's is linear\n" in message
    adapter = lorakit.Adapter(
        Spec(rank=1), {"1": LowRank(torch.ones(1, 6), torch.ones(5, 1), alpha=1.0)}
    )
    assert "  1   is of a kind that cannot be adapted" in refused(
        AdapterMismatch, lambda: lorakit.attach(sequential(), adapter)
    )


def test_adapter_that_lacks_layers_is_refused() -> None:
    adapter = adapter_for(llama())
    del adapter.deltas["model.layers.1.self_attn.v_proj"]
    message = refused(AdapterMismatch, lambda: lorakit.attach(llama(), adapter))
    assert (
        "  model.layers.1.self_attn.v_proj   is named by its targets, but the adapter has no "
        "factors for it\n" in message
    )


def test_full_parameters_must_fit() -> None:
    adapter = adapter_for(bert(), full_modules=["classifier"])
    small = bert()
    small.classifier = nn.Linear(16, 2)
    message = refused(AdapterMismatch, lambda: lorakit.attach(small, adapter))
    assert "  classifier.weight   is (3, 16), the model's is (2, 16)\n" in message
    message = refused(AdapterMismatch, lambda: lorakit.attach(bert().bert, adapter))
    assert "  classifier.weight   is not in the model\n" in message


def test_another_base_is_refused_unless_meant() -> None:
    adapter, other = adapter_for(llama()), llama()
    other.model.norm.weight.data.mul_(2)
    message = refused(AdapterMismatch, lambda: lorakit.attach(other, adapter))
    here, there = lorakit.fingerprint(other), lorakit.fingerprint(llama())
    assert message == (
        f"The adapter was trained on other base weights ({there}) than this model's ({here}).\n"
        "Nothing was attached. Pass any_base=True (--any-base) if you mean it."
    )
    lorakit.attach(other, adapter, any_base=True)
    assert list(lorakit.attached(other)) == ["default"]


def test_rank_above_the_matrix_can_be_read_and_attached(tmp_path: Path) -> None:
    deltas = {"0": LowRank(torch.ones(7, 6), torch.ones(5, 7), alpha=1.0)}
    adapter = lorakit.Adapter(Spec(rank=7, alpha=1.0, targets=["0"]), deltas)
    model = sequential()
    lorakit.attach(model, lorakit.Adapter.load(adapter.save(tmp_path)))
    lorakit.merge(model)


def test_factors_must_share_a_rank() -> None:
    assert refused(SpecError, lambda: LowRank(torch.ones(2, 3), torch.ones(4, 3), alpha=1.0)) == (
        "A (rank, in) and B (out, rank) must share a rank: A is (2, 3), B is (4, 3)."
    )


CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, LorakitError)
]


@pytest.mark.parametrize("kind", CLASSES)
def test_errors_survive_pickle(kind: type[LorakitError]) -> None:
    error = kind("What was asked.", [f"fault {i}" for i in range(14)], "What to do.")
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is kind and str(twin) == str(error)
    assert (twin.message, twin.faults, twin.advice) == (error.message, error.faults, error.advice)
    assert str(error).splitlines()[-2:] == [
        "  … and 2 more (--json, or .faults, lists them all)",
        "What to do.",
    ]
    assert (error.exit_code == 1) == (kind is errors.TrainingError)
    assert kind is LorakitError or len(kind.__bases__) == 2
    assert vars(kind)["__doc__"]
