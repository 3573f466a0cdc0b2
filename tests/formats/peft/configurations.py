"""The configurations of PEFT's own tests, in our words: a model, a type of config, its options.

Source: huggingface/peft 0.21, `TEST_CASES` in tests/test_custom_models.py, and the configs of
    its tests of decoders, of encoders with decoders, and of classifiers.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import KasaConfig, MontecloraConfig, VeloraConfig
from peft.tuners.lora.config import BdLoraConfig
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ...sites.experts import experts_model
from ..models import bert, gpt2, llama, randn, t5, tied

Options = Mapping[str, Any]


class Perceptron(nn.Module):
    """Two linear layers, or two layers that keep a matrix themselves."""

    def __init__(self, linear: Callable[[int, int], nn.Module] = nn.Linear):
        super().__init__()
        self.lin0 = linear(10, 20)
        self.lin1 = linear(20, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin1(torch.relu(self.lin0(x)))


class OwnLinear(nn.Module):
    """A linear layer of a class that no library knows."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Lookup(nn.Module):
    """An embedding, transformers' Conv1D and a linear layer."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(100, 5)
        self.conv1d = Conv1D(4, 5)
        self.lin0 = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin0(torch.relu(self.conv1d(self.emb(x))))


class Convolutional(nn.Module):
    """A convolution and a linear layer."""

    def __init__(self, kind: type[nn.Module], name: str, *sizes: int, **options: Any):
        super().__init__()
        self.name = name
        self.add_module(name, kind(*sizes, **options))
        self.lin0 = nn.Linear(sizes[1], 2)

    def forward(self, x: Tensor) -> Tensor:
        convolved = self.get_submodule(self.name)(x)
        return self.lin0(torch.relu(convolved).flatten(2).mean(2))


class Attentive(nn.Module):
    """A MultiheadAttention and a linear layer."""

    def __init__(self):
        super().__init__()
        self.mha = nn.MultiheadAttention(10, 2)
        self.lin0 = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin0(self.mha(x, x, x)[0])


def convolutional(dims: int, *sizes: int, **options: Any) -> Callable[[], nn.Module]:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return lambda: Convolutional(kind, f"conv{dims}d", *sizes, **options)


SMALL: dict[str, Callable[[], nn.Module]] = {
    "perceptron": Perceptron,
    "own": lambda: Perceptron(OwnLinear),
    "lookup": Lookup,
    "attention": Attentive,
    "conv1d": convolutional(1, 4, 6, 2),
    "conv1d, wide": convolutional(1, 32, 64, 3),
    "conv1d, 1": convolutional(1, 4, 6, 1),
    "conv1d, groups": convolutional(1, 4, 8, 2, groups=2),
    "conv2d": convolutional(2, 5, 10, 3),
    "conv2d, 1": convolutional(2, 4, 10, 1),
    "conv2d, groups": convolutional(2, 4, 8, 3, groups=2),
    "conv2d, many groups": convolutional(2, 4, 8, 3, groups=4),
    "conv3d": convolutional(3, 4, 6, 2),
    "conv3d, 1": convolutional(3, 4, 6, 1),
}
LARGE: dict[str, Callable[[], nn.Module]] = {
    "llama": llama,
    "tied": tied,
    "gpt2": gpt2,
    "bert": bert,
    "t5": t5,
    "mixtral": lambda: experts_model("mixtral").float(),
    "qwen3-moe": lambda: experts_model("qwen3-moe").float(),
}


def build(name: str) -> nn.Module:
    """Return a model whose weights are the same at each call."""
    if name in LARGE:
        return LARGE[name]()
    model = SMALL[name]().eval()
    for seed, parameter in enumerate(model.parameters()):
        parameter.data.copy_(randn(*parameter.shape, seed=seed) * 0.5)
    return model


def compute(name: str, model: nn.Module) -> Tensor:
    """Return the outputs of a model for a fixed input."""
    with torch.no_grad():
        if name in LARGE:
            ids = (torch.arange(12).view(2, 6) * 7) % 50
            more = {"decoder_input_ids": ids.flip(1)} if name == "t5" else {}
            return model(input_ids=ids, **more).logits
        if name == "lookup":
            return model(torch.arange(0, 100, 9).view(2, 6))
        if name.startswith("conv"):
            dims, channels = int(name[4]), next(model.parameters()).shape[1]
            groups = {"conv1d, groups": 2, "conv2d, groups": 2, "conv2d, many groups": 4}
            return model(randn(3, channels * groups.get(name, 1), *(6,) * dims, seed=99))
        return model(randn(3, 4, 10, seed=99))


LIN0: Options = {"target_modules": ["lin0"]}
BOTH: Options = {"target_modules": ["lin0", "lin1"]}
SAVED: Options = {**LIN0, "modules_to_save": ["lin1"]}


def on(*modules: str, **options: Any) -> Options:
    return {"target_modules": list(modules), **options}


def name_cases(model: str, config: str, *options: Options) -> dict[str, tuple[str, str, Options]]:
    """Return cases by a name that says what they are."""
    return {f"{model} {config} {shorten(one)}": (model, config, one) for one in options}


def shorten(options: Options) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())


LYCORIS: tuple[Options, ...] = (
    {"target_modules": "lin0"},
    LIN0,
    on("lin1"),
    BOTH,
    SAVED,
    {**LIN0, "alpha": 4, "module_dropout": 0.1},
    {**LIN0, "rank_dropout": 0.5},
    {**BOTH, "rank_pattern": {"lin1": 3}, "alpha_pattern": {"lin0": 5}},
    {**BOTH, "r": 1},
)
VECTORS: tuple[Options, ...] = ({"target_modules": "lin0"}, LIN0, on("lin1"), BOTH, SAVED)
ATTENTION = on("q_proj", "v_proj")
LOW_RANK: tuple[Options, ...] = (
    {"target_modules": "lin0"},
    LIN0,
    on("lin1"),
    BOTH,
    SAVED,
    {**LIN0, "lora_alpha": 4, "lora_dropout": 0.1},
    {**LIN0, "use_dora": True},
    {**BOTH, "use_dora": True},
    {"target_modules": "lin1", "use_dora": True, "lora_alpha": 32},
    {**BOTH, "use_rslora": True, "lora_alpha": 5},
    {**BOTH, "rank_pattern": {"lin1": 2}, "alpha_pattern": {"lin0": 3}},
    {**BOTH, "bias": "all"},
    {**LIN0, "bias": "lora_only"},
    {**LIN0, "bias": "all", "modules_to_save": ["lin1"]},
    {"target_modules": "all-linear"},
    {**LIN0, "init_lora_weights": False},
    {**LIN0, "init_lora_weights": "gaussian"},
    {**LIN0, "init_lora_weights": "orthogonal"},
    {**LIN0, "init_lora_weights": "mica"},
    {**BOTH, "exclude_modules": ["lin1"]},
    {**LIN0, "target_parameters": ["lin1.weight"]},
    {"target_modules": [], "target_parameters": ["lin0.weight"]},
)
TRANSFORMER: tuple[Options, ...] = (
    ATTENTION,
    {**ATTENTION, "use_rslora": True},
    {**ATTENTION, "use_dora": True},
    {**ATTENTION, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {r".*0\.self_attn\.v_proj": 5}},
    {**ATTENTION, "layers_to_transform": [1]},
    {**ATTENTION, "modules_to_save": ["lm_head"]},
    {**ATTENTION, "trainable_token_indices": [3, 7]},
    {"target_modules": "all-linear", "exclude_modules": ["up_proj"]},
    on("embed_tokens", "q_proj"),
    on("embed_tokens", "lm_head"),
    on("q_proj", target_parameters=["down_proj.weight"]),
)

CASES: dict[str, tuple[str, str, Options]] = {
    **name_cases("perceptron", "Lora", *LOW_RANK),
    **name_cases("own", "Lora", {"target_modules": [], "target_parameters": ["lin0.weight"]}),
    **name_cases(
        "lookup",
        "Lora",
        on("conv1d"),
        on("emb"),
        on("emb", "conv1d"),
        on("conv1d", use_dora=True),
        on("emb", use_dora=True),
        on("emb", "conv1d", use_dora=True),
        on("conv1d", trainable_token_indices={"emb": [0, 10]}),
        on("emb", modules_to_save=["lin0"]),
    ),
    **name_cases("attention", "Lora", on("mha"), on("mha", "lin0"), on("mha", use_rslora=True)),
}
for dims in (1, 2, 3):
    layer = f"conv{dims}d"
    for kernel in (layer, f"{layer}, 1"):
        CASES |= name_cases(kernel if kernel in SMALL else layer, "Lora", on(layer))
        CASES |= name_cases(kernel if kernel in SMALL else layer, "Lora", on(layer, use_dora=True))
    CASES |= name_cases(layer, "Lora", on(layer, "lin0"), on(layer, "lin0", use_dora=True))
    CASES |= name_cases(layer, "Lora", on(layer, use_rslora=True, r=3))
for kind in ("LoHa", "LoKr"):
    CASES |= name_cases("perceptron", kind, *LYCORIS)
    CASES |= name_cases("conv1d", kind, on("conv1d"), on("conv1d", r=2), on("conv1d", r=1))
    CASES |= name_cases("conv1d, wide", kind, on("conv1d", r=2), on("conv1d", r=64))
    CASES |= name_cases("conv1d, 1", kind, on("conv1d"), on("conv1d", r=1))
    CASES |= name_cases("conv1d, groups", kind, on("conv1d", r=4))
    CASES |= name_cases("conv2d", kind, on("conv2d"), on("conv2d", "lin0"), on("conv2d", r=1))
    CASES |= name_cases("conv2d, 1", kind, on("conv2d"))
    CASES |= name_cases("conv2d, groups", kind, on("conv2d"))
    CASES |= name_cases("conv2d, many groups", kind, on("conv2d"))
    CASES |= name_cases("llama", kind, ATTENTION, {**ATTENTION, "r": 2})
    CASES |= name_cases("bert", kind, on("query", modules_to_save=["classifier"]))
CASES |= name_cases("perceptron", "LoKr", {**LIN0, "decompose_both": True, "r": 1, "alpha": 1})
for more in ({"decompose_both": True, "r": 1}, {"decompose_factor": 4}):
    CASES |= name_cases("conv2d", "LoKr", on("conv2d", "lin0", **more))
    CASES |= name_cases("conv1d", "LoKr", on("conv1d", "lin0", **more))
    CASES |= name_cases("llama", "LoKr", {**ATTENTION, **more})
CASES |= name_cases("perceptron", "Vera", *VECTORS, {**BOTH, "r": 4, "bias": "vera_only"})
CASES |= name_cases("lookup", "Vera", on("conv1d"))
CASES |= name_cases("llama", "Vera", ATTENTION, {"target_modules": "all-linear", "r": 4})
STEPS: Options = {"total_step": 10, "init_r": 4, "target_r": 2}
CASES |= name_cases("perceptron", "AdaLora", *({**one, **STEPS} for one in VECTORS))
CASES |= name_cases("perceptron", "AdaLora", {**LIN0, **STEPS, "bias": "all"})
CASES |= name_cases("lookup", "AdaLora", on("conv1d", **STEPS))
CASES |= name_cases("conv2d", "AdaLora", on("conv2d", **STEPS), on("conv2d", "lin0", **STEPS))
CASES |= name_cases("llama", "AdaLora", {**ATTENTION, **STEPS})
for family in ("llama", "tied"):
    CASES |= name_cases(family, "Lora", *TRANSFORMER)
CASES |= name_cases(
    "tied",
    "Lora",
    on("embed_tokens", ensure_weight_tying=True),
    {**ATTENTION, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    {**ATTENTION, "trainable_token_indices": [3], "ensure_weight_tying": True},
)
CASES |= name_cases(
    "gpt2",
    "Lora",
    on("c_attn"),
    on("c_attn", use_dora=True),
    on("c_attn", bias="all"),
    on("wte", "c_attn"),
    on("wpe", "c_attn", trainable_token_indices={"wte": [1]}),
    {"target_modules": "all-linear"},
)
CASES |= name_cases(
    "bert",
    "Lora",
    on("query", task_type="SEQ_CLS"),
    on("query", task_type="SEQ_CLS", bias="all"),
    on("query", "word_embeddings", modules_to_save=["classifier"]),
    on("query", use_dora=True, bias="lora_only", task_type="SEQ_CLS"),
)
CASES |= name_cases(
    "t5",
    "Lora",
    on("q", "v"),
    on("q", "v", task_type="SEQ_2_SEQ_LM", bias="all"),
    on("shared", "q"),
    {"target_modules": "all-linear"},
)
for family in ("mixtral", "qwen3-moe"):
    CASES |= name_cases(
        family,
        "Lora",
        ATTENTION,
        {**ATTENTION, "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
        {**ATTENTION, "target_parameters": ["gate.weight"]},
        on("q_proj", target_parameters=["experts.down_proj", "gate.weight"]),
        {"target_modules": [], "target_parameters": ["experts.down_proj", "o_proj.weight"]},
    )
CASES |= name_cases("mixtral", "Lora", on("q_proj", "w1", "w2", "w3"), on("q_proj", "gate", "w2"))
CASES |= name_cases("qwen3-moe", "Lora", on("q_proj", "gate_proj", "up_proj", "down_proj"))

MIXED_GROUPS = "A mixes the channels of all groups, which no change of its weight does"
CHANGED_BASE = "stores the factors relative to a base that it changed"
# The options of PEFT's types that lorakit has no delta for.
FOREIGN: dict[str, Options] = {
    "IA3": {"feedforward_modules": []},
    "BOFT": {"boft_block_size": 2},
    "OFT": {"r": 2, "oft_block_size": 0},
    "HRA": {},
    "Miss": {"r": 2},
    "LNTuning": {},
    "Shira": {"r": 1},
    "FourierFT": {"n_frequency": 10},
    "VBLoRA": {"vector_length": 1, "num_vectors": 5},
    "C3A": {"block_size": 2},
    "WaveFT": {"n_frequency": 8},
    "Road": {"group_size": 2},
    "Delora": {},
    "Psoft": {"r": 4, "psoft_alpha": 4},
    "Gralora": {},
    "Glora": {},
    "Hira": {},
    "Deft": {},
    "Beft": {},
    "RandLora": {"randlora_alpha": 1},
    "Frod": {},
    "UniLora": {"theta_d_length": 101},
    "TinyLora": {"r": 2, "u": 16},
    "Pvera": {},
    "Lily": {"r": 2, "stride_A": 1, "num_B": 2},
    "Peanut": {"r": 2, "depth": 0, "act_fn": "relu"},
    "Supertuning": {"sparsity": 0.5},
}
REFUSED: dict[str, str] = {}  # the text of the refusal, by case


def refuse(text: str, cases: Mapping[str, tuple[str, str, Options]]) -> None:
    """Add cases whose files are refused with this text."""
    CASES.update(cases)
    REFUSED.update(dict.fromkeys(cases, text))


for groups in ("conv1d, groups", "conv2d, groups", "conv2d, many groups"):
    layer = groups[:6]
    refuse(MIXED_GROUPS, name_cases(groups, "Lora", on(layer), on(layer, use_dora=True)))
for kind in ("LoHa", "LoKr"):
    tucker = {"r": 2, "use_effective_conv2d": True}
    text = "use_effective_conv2d = True is not supported"
    refuse(text, name_cases("conv1d, wide", kind, on("conv1d", **tucker)))
    refuse(text, name_cases("conv2d", kind, on("conv2d", **tucker)))
for init in ("pissa", "pissa_niter_2", "olora"):
    for model in ("perceptron", "llama"):
        layer = "lin0" if model == "perceptron" else "q_proj"
        cases = name_cases(model, "Lora", on(layer, init_lora_weights=init, r=2))
        refuse(f"init_lora_weights = '{init}' {CHANGED_BASE}", cases)
for key, value in {
    "kasa_config": KasaConfig(),
    "monteclora_config": MontecloraConfig(num_samples=2),
    "use_bdlora": BdLoraConfig(target_modules_bd_a=["lin0"], match_strict=False),
    "velora_config": VeloraConfig(num_groups=2, init_type="random"),
    "lora_bias": True,
}.items():
    refuse(f"{key} = ", name_cases("perceptron", "Lora", {**LIN0, key: value, "r": 4}))
refuse("lora_bias = True", name_cases("conv2d", "Lora", on("conv2d", lora_bias=True)))
refuse("lora_bias = True", name_cases("conv3d", "Lora", on("conv3d", lora_bias=True)))
refuse(
    "layer_replication = ",
    name_cases("llama", "Lora", on("q_proj", layer_replication=[[0, 2], [1, 2]])),
)
refuse(
    "alora_invocation_tokens = ",
    name_cases(
        "llama", "Lora", on("q_proj", alora_invocation_tokens=[1, 2], task_type="CAUSAL_LM")
    ),
)
for kind, options in FOREIGN.items():
    refuse(" describes '", name_cases("perceptron", kind, {**LIN0, **options}))
