"""Calls of same_as.py: what the public names of lorakit give on small models, case by case.

Each case takes a folder that it may write, and returns nested values; tensors are told by digest.
Names of commit e8b0ad1 are used throughout: `public`, `member` and `asked` put in those of the tree.
"""

import importlib
import inspect
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from same_as import RENAMES
from same_as_files import digest, plain
from same_as_inputs import bert_config, llama_config, mixtral_config, seeded
from same_as_refusals import ATTACHED, SPECS
from torch import nn

import lorakit

LIVES = {
    "lora": "llama | rank: 4, alpha: 7",
    "dropout": "llama | rank: 4, dropout: 0.3, scale_rule: alpha/sqrt(rank)",
    "dora": "llama | rank: 3, delta: dora",
    "vera": "llama | rank: 4, delta: vera, targets: attention",
    "loha": "llama | rank: 3, delta: loha",
    "lokr": "llama | rank: 4, delta: lokr",
    "adalora": "llama | rank: 3, delta: adalora",
    "gaussian": "llama | rank: 3, init: gaussian, init_std: 0.05",
    "orthogonal": "llama | rank: 3, init: orthogonal, dtype: float64",
    "pissa": "llama | rank: 3, init: pissa",
    "pissa-fast": "llama | rank: 3, init: pissa-fast",
    "olora": "llama | rank: 3, init: olora, dtype: bfloat16",
    "eva": "llama | rank: 3, init: eva",
    "lora-ga": "llama | rank: 3, init: lora-ga",
    "norms": "llama | rank: 2, targets: qv, whole_modules: [norms]",
    "overrides": "llama | rank: 2, overrides: {up_proj: {rank: 5, alpha: 1}, o_proj: {init: olora}}",
    "embedding": "llama | rank: 2, targets: [embed_tokens, lm_head, q_proj]",
    "embedding-dora": "llama | rank: 2, targets: [embed_tokens, lm_head], delta: dora",
    "tokens": "llama | rank: 2, targets: qv, token_rows: [3, 5, 9]",
    "tokens-named": "llama | rank: 2, targets: [k_proj], token_rows: {lm_head: [4]}",
    "tie": "tied | rank: 2, targets: [embed_tokens], tie: true",
    "untied": "tied | rank: 2, targets: [embed_tokens, v_proj]",
    "tokens-tied": "tied | rank: 2, targets: none, token_rows: [1, 2]",
    "gpt2": "gpt2 | rank: 3, bias: all",
    "gpt2-dora": "gpt2 | rank: 3, delta: dora, bias: adapted, targets: [c_attn]",
    "gpt2-qv": "gpt2 | rank: 3, targets: [c_attn.q, c_attn.v, c_fc]",
    "gpt2-parts": "gpt2 | rank: 3, targets: [c_fc.one], parts: {c_fc: {one: 40, two: 24}}",
    "bert": "bert | rank: 3, targets: qv, whole_modules: [classifier]",
    "bert-loha": "bert | rank: 2, delta: loha, bias: adapted, exclude: [key]",
    "t5": "t5 | rank: 3",
    "mixtral": "mixtral | rank: 2",
    "mixtral-dora": "mixtral | rank: 2, delta: dora",
    "convolutions": "convolutions | rank: 2, targets: conv",
    "convolutions-dora": "convolutions | rank: 2, targets: ['*'], delta: dora",
    "attention": "attention | rank: 2",
    "recurrent": "recurrent | rank: 2, targets: ['lstm*', bilinear, head]",
    "int8": "int8 | rank: 3",
    "int8-dora": "int8 | rank: 3, delta: dora",
}
ROWS = ["a", None, {"a": 0.5, "b": 2.0}, ["a", "b"]]
SHAPES = ("even", "bottom-heavy", "top-heavy", "linear", "linear-falling")
PRESETS = "all-linear conv none q k v o qv qkv qkvo attention mlp".split()
IDS = torch.arange(28).reshape(4, 7) * 5 % 50
BATCHES = [{"input_ids": IDS, "labels": IDS}, {"input_ids": IDS + 1, "labels": IDS + 1}]


class Recurrent(nn.Module):
    """Recurrent layer, a bilinear one and a head."""

    def __init__(self, _: Any):
        super().__init__()
        self.lstm = nn.LSTM(8, 12, num_layers=2, batch_first=True)
        self.bilinear = nn.Bilinear(12, 12, 10)
        self.head = nn.Linear(10, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs of every step."""
        y = self.lstm(x)[0]
        return self.head(torch.tanh(self.bilinear(y, y)))


def convolutions(_: Any) -> nn.Module:
    """Return a small network of convolutions."""
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2),
        nn.Tanh(),
        nn.ConvTranspose2d(8, 6, 3, stride=2),
        nn.Flatten(),
        nn.Linear(486, 5),
    )


def attention(_: Any) -> nn.Module:
    """Return a block of torch's own attention."""
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


def coarse(_: Any) -> nn.Module:
    """Return linear layers whose weights are int8."""
    quantization = importlib.import_module("torchao.quantization")
    model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 32))
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def gpt2_config() -> Any:
    """Return the config of a tiny GPT-2."""
    return transformers.GPT2Config(
        vocab_size=50,
        n_embd=16,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
    )


def t5_config() -> Any:
    """Return the config of a tiny T5."""
    return transformers.T5Config(
        vocab_size=50,
        d_model=16,
        d_kv=4,
        d_ff=24,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )


def families() -> dict[str, tuple[Any, Any]]:
    """Return class and config of each model."""
    return {
        "llama": (transformers.LlamaForCausalLM, llama_config(50)),
        "tied": (transformers.LlamaForCausalLM, llama_config(50, tie_word_embeddings=True)),
        "gpt2": (transformers.GPT2LMHeadModel, gpt2_config()),
        "bert": (transformers.BertForSequenceClassification, bert_config(50, num_labels=3)),
        "t5": (transformers.T5ForConditionalGeneration, t5_config()),
        "mixtral": (transformers.MixtralForCausalLM, mixtral_config(50)),
        "convolutions": (convolutions, None),
        "attention": (attention, None),
        "recurrent": (Recurrent, None),
        "int8": (coarse, None),
    }


def built(family: str) -> Any:
    """Return a fresh model of a family, in eval mode."""
    model_class, config = families()[family]
    return seeded(model_class, config)


def arguments(model: Any) -> dict[str, Any]:
    """Return what a model is called with."""
    if hasattr(model, "config"):
        more = {"decoder_input_ids": IDS.flip(1)} if model.config.is_encoder_decoder else {}
        return {"input_ids": IDS, **more}
    shapes = {"Conv2d": (4, 4, 6, 6), "Linear": (4, 7, 64)}
    first = type(next(iter(model.children()))).__name__
    shape = shapes.get(first.replace("Plain", ""), (4, 7, 8))
    generator = torch.Generator().manual_seed(1)
    return {"": torch.randn(shape, generator=generator)}


def forward(model: Any) -> torch.Tensor:
    """Return the outputs of a model for fixed inputs."""
    given = arguments(model)
    if "" in given:
        return model(given[""])
    return model(**given).logits


def outputs(model: Any) -> str:
    """Return the digest of the outputs."""
    with torch.no_grad():
        return digest(forward(model))


def member(thing: Any, name: str) -> Any:
    """Return an attribute by its new name, or by its old one where there is no new one."""
    new = RENAMES["names"].get(name, name)
    return getattr(thing, new if hasattr(thing, new) else name)


def public(name: str) -> Any:
    """Return a public name of lorakit."""
    return member(lorakit, name)


def module(path: str) -> Any:
    """Return a module by its new path, or by its old one where there is no new one."""
    try:
        return importlib.import_module(RENAMES["modules"].get(path, path))
    except ImportError:
        return importlib.import_module(path)


def renamed(value: Any, known: Any) -> Any:
    """Return settings under the names that are known, at every depth."""
    if not isinstance(value, dict):
        return value
    changed = {}
    for key, inner in value.items():
        new = RENAMES["fields"].get(key, key)
        changed[new if new in known else key] = renamed(inner, known)
    return changed


def asked(function: Any, *positional: Any, **options: Any) -> Any:
    """Call a function with keywords by the names that it has."""
    known = inspect.signature(function).parameters
    return function(*positional, **renamed(options, known))


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """Return the family and the fields of a case."""
    family, _, fields = text.partition(" | ")
    return family, yaml.safe_load("{" + fields + "}")


def new_spec(fields: dict[str, Any]) -> Any:
    """Return a Spec of these fields."""
    return asked(public("Spec"), **fields)


def attempted(call: Callable[[], Any]) -> Any:
    """Return what a call gives, or the kind of its refusal."""
    try:
        return call()
    except lorakit.LorakitError as error:
        faults = len(error.faults)
        return {"error": type(error).__name__, "faults": faults, "exit": error.exit_code}


def filled(adapter: Any, seed: int = 0) -> Any:
    """Move every parameter of an adapter by small random numbers."""
    named = sorted(adapter.named_parameters())
    for i, (_, parameter) in enumerate(named):
        generator = torch.Generator().manual_seed(100 * seed + i)
        noise = torch.randn(parameter.shape, generator=generator) / 8
        parameter.data.add_(noise.to(parameter.dtype))
    return adapter


def attached(model: Any, text_fields: dict[str, Any], name: str = "default", seed: int = 3) -> Any:
    """Attach a fresh adapter."""
    spec = new_spec(text_fields)
    looks = text_fields.get("init") in ("eva", "lora-ga")
    batches = BATCHES if looks else None
    return asked(public("attach"), model, spec, name=name, seed=seed, batches=batches)


def described(model: Any, adapter: Any) -> dict[str, Any]:
    """Return what is told of an adapter and of the model it is on."""
    covered = public("coverage")(model)
    names = [name for name, _ in adapter.named_parameters()]
    return {
        "content_hash": adapter.content_hash(),
        "text": repr(adapter),
        "parameters": dict(zip(names, map(plain, adapter.parameters()), strict=True)),
        "order": names,
        "spec": adapter.spec.to_dict(),
        "provenance": adapter.provenance,
        "deltas": list(adapter.deltas),
        "whole": list(member(adapter, "whole")),
        "rows": member(adapter, "rows"),
        "coverage": covered.to_dict(),
        "coverage text": str(covered),
        "fingerprint": public("fingerprint")(model),
        "state": list(model.state_dict()),
        "trains": [name for name, p in model.named_parameters() if p.requires_grad],
    }


def trained(model: Any, adapter: Any) -> Iterator[dict[str, Any]]:
    """Take three steps and yield loss and gradients of each."""
    torch.manual_seed(5)
    model.train()
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    for _ in range(3):
        loss = forward(model).float().square().mean()
        loss.backward()
        named = adapter.named_parameters()
        gradients = {name: plain(parameter.grad) for name, parameter in named}
        yield {"loss": loss.item(), "gradients": gradients}
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def switched(model: Any) -> dict[str, Any]:
    """Return the outputs with the adapter off, half on, and on again."""
    enable, told = public("enable"), {}
    for name, which in (("off", None), ("half", {"default": 0.5}), ("on", "default")):
        refused = attempted(partial(enable, model, which))
        told[name] = [refused, outputs(model), dict(public("enabled")(model))]
    return told


def merged(model: Any) -> dict[str, Any]:
    """Return the outputs after a merge and after it is taken back."""
    undo = asked(public("merge"), model, allow_loss=True)
    told = {"merged": outputs(model), "state": plain(dict(model.state_dict()))}
    told["before"] = plain(undo.before)
    told["again"] = attempted(partial(public("merge"), model))
    public("unmerge")(model, undo)
    told["unmerged"] = outputs(model)
    return told


def life(text: str, folder: Path) -> dict[str, Any]:
    """Return what every public call gives on a model with one adapter, from attach to load."""
    family, fields = parsed(text)
    model = built(family)
    told: dict[str, Any] = {"base": outputs(model), "of": public("fingerprint")(model)}
    adapter = attached(model, fields)
    told["fresh"] = [outputs(model), described(model, adapter)]
    filled(adapter)
    told["filled"] = [outputs(model), adapter.content_hash()]
    told["steps"] = list(trained(model, adapter))
    told["trained"] = [outputs(model), described(model, adapter)]
    told["checked"] = attempted(lambda: public("check")(model, **arguments(model)))
    told["switched"] = switched(model)
    told["merged"] = attempted(lambda: merged(model))
    attempted(lambda: adapter.save(folder))
    public("detach")(model)
    told["detached"] = [outputs(model), list(model.state_dict()), public("attached")(model)]
    if folder.exists():
        told["loaded"] = loaded(built(family), folder)
    return told


def loaded(model: Any, folder: Path) -> dict[str, Any]:
    """Return what an adapter from disk is, and what it gives on a fresh model."""
    adapter = public("Adapter").load(folder)
    told = {"same as its copy": adapter == adapter.copy(), "text": repr(adapter)}
    asked(public("attach"), model, adapter, name="again", trainable=False)
    return {**told, "outputs": outputs(model), "adapter": described(model, adapter)}


def routed(family: str, _: Path) -> dict[str, Any]:
    """Return the outputs of rows that go to adapters of their own, and their gradients."""
    model = built(family)
    for seed, name in enumerate(("a", "b")):
        targets = "all-linear" if seed else "attention"
        filled(attached(model, {"rank": 2 + seed, "targets": targets}, name, seed), seed)
    told: dict[str, Any] = {}
    with asked(public("route"), model, ROWS, batch_first=True):
        y = forward(model)
        y.float().square().mean().backward()
    told["routed"] = digest(y)
    for name, adapter in public("attached")(model).items():
        told[name] = {key: plain(p.grad) for key, p in adapter.named_parameters()}
    for name, which in (("one", "b"), ("both", {"a": 0.3, "b": -1.0})):
        public("enable")(model, which)
        told[name] = outputs(model)
    public("detach")(model, "a")
    told["one left"] = [outputs(model), str(public("coverage")(model))]
    told["refused"] = attempted(lambda: public("route")(model, ["c"]).__enter__())
    return told


def scheduled(_: Path) -> dict[str, Any]:
    """Return the specs that spread a rank over the layers in every way."""
    told = {}
    for family in ("llama", "gpt2"):
        model, spec = built(family), new_spec({"rank": 3, "alpha": 6.0})
        for shape in SHAPES:
            for budget in (None, 1234):
                chosen = asked(public("schedule"), model, spec, shape=shape, budget=budget)
                told[f"{family} {shape} {budget}"] = chosen.to_dict()
        options = {"shape": "explained-variance", "batches": BATCHES}
        told[f"{family} data"] = asked(public("schedule"), model, spec, **options).to_dict()
        told[f"{family} best"] = public("suggest")(model, spec, BATCHES).to_dict()
    return told


def selected(_: Path) -> dict[str, Any]:
    """Return the layers that each preset names in each family, with their kinds."""
    told = {}
    for family in families():
        model = built(family)
        for preset in PRESETS:
            found = attempted(partial(public("select"), model, preset))
            told[f"{family} {preset}"] = list(found) if "error" not in found else found
    return told


def factors(_: Path) -> dict[str, Any]:
    """Return factors of matrices, and what a pair of factors is."""
    told = {}
    M = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
    for rank in (1, 5, 12):
        told[f"rank {rank}"] = plain(list(public("factorize")(M, rank)))
    A, B = M[:4].clone(), M[:, :4].clone()
    pair = public("LowRank")(A, B, alpha=6.0)
    told["pair"] = [digest(pair.matrix()), pair.rank, list(pair.shape), pair.scale]
    return told


def values(_: Path) -> dict[str, Any]:
    """Return what an adapter is without any model, and specs as they are written."""
    adapter = filled(attached(built("llama"), {"rank": 2, "targets": "qv"}))
    again = adapter.copy().to(torch.bfloat16)
    spec = new_spec({"rank": 8, "overrides": {"up_proj": {"rank": 64}}})
    same = public("Spec").from_dict(spec.to_dict())
    return {
        "copy": [repr(again), again.content_hash(), str(again.dtype), again == adapter],
        "spec": [spec.to_dict(), same == spec],
        "scale": spec.settings("layers.0.up_proj").scale,
        "names": len(lorakit.__all__),
    }


def drop_in(_: Path) -> dict[str, Any]:
    """Return what the layers of lorakit.loralib give in both modes."""
    torch.manual_seed(0)
    lora, told = module("lorakit.loralib"), {}
    x = torch.randn(3, 4, 16)
    layers = {
        "linear": lora.Linear(16, 8, r=3, lora_alpha=6),
        "merged": lora.MergedLinear(16, 24, r=2, enable_lora=[True, False, True]),
        "embedding": lora.Embedding(20, 16, r=2),
        "convolution": lora.Conv2d(3, 6, 3, r=2),
    }
    given = {"embedding": IDS % 20, "convolution": x.reshape(1, 3, 8, 8)}
    for name, layer in layers.items():
        lora.mark_only_lora_as_trainable(layer)
        for parameter in layer.parameters():
            parameter.data.add_(0.01)
        before = digest(layer(given.get(name, x)))
        after = digest(layer.eval()(given.get(name, x)))
        told[name] = [before, after, plain(lora.lora_state_dict(layer)), list(layer.state_dict())]
    return told


def by_formula(model: Any, size: float) -> Any:
    """Fill a model as tests/formats/golden/make.py does."""
    named = sorted(model.named_parameters())
    for place, (_, parameter) in enumerate(named):
        count = torch.arange(parameter.numel()) + 37 * place
        numbers = (31 * count**2 + 17 * count) % 1009 / 504 - 1
        parameter.data.copy_((size * numbers).reshape(parameter.shape))
    return model.eval()


def golden_model(family: str) -> Any:
    """Return the model that the golden files of a family are for."""
    if family == "llama":
        config = transformers.LlamaConfig(
            vocab_size=20,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=16,
        )
        return by_formula(transformers.LlamaForCausalLM(config), 0.5)
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    return by_formula(transformers.GPT2LMHeadModel(config), 0.5)


def golden(family: str, folder: Path) -> dict[str, Any]:
    """Return what a file that PEFT wrote means, and what it gives, in digest and beside PEFT."""
    root = Path(str(lorakit.__file__)).parents[2] / "tests"
    config = next(root.rglob(f"golden/{family}/adapter_config.json"))
    adapter = public("Adapter").load(config.parent)
    model = golden_model(family)
    asked(public("attach"), model, adapter)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[3, 17, 8, 0, 19]])).logits
    wanted = json.loads((config.parent / "expected.json").read_text())["adapted"]
    near = torch.allclose(logits, torch.tensor(wanted), atol=1e-5)
    told = {"outputs": digest(logits), "as PEFT": near, "adapter": described(model, adapter)}
    adapter.save(folder)
    return told


def refused_specs(_: Path) -> dict[str, Any]:
    """Return how wrong specs are refused."""
    told = {}
    for name, text in SPECS.items():
        fields = yaml.safe_load("{" + text + "}")
        told[name] = attempted(lambda fields=fields: new_spec(fields).to_dict())
    return told


def refused_attach(_: Path) -> dict[str, Any]:
    """Return how wrong specs are refused by a model."""
    told = {}
    for name, text in ATTACHED.items():
        family, fields = parsed(text)
        model = built(family)
        told[name] = attempted(lambda model=model, fields=fields: repr(attached(model, fields)))
        told[f"{name}, after"] = [outputs(model), len(public("attached")(model))]
    return told


def refused_calls(folder: Path) -> dict[str, Any]:
    """Return how wrong calls on a model are refused."""
    model, enable, attach = built("llama"), public("enable"), public("attach")
    told = {"nothing attached": attempted(lambda: enable(model, "a"))}
    adapter = filled(attached(model, {"rank": 2, "whole_modules": ["lm_head"]}, "a"))
    spec = new_spec({"rank": 2})
    told["name taken"] = attempted(lambda: attach(model, spec, name="a"))
    told["odd name"] = attempted(lambda: attach(model, spec, name="a.b"))
    told["no spec"] = attempted(lambda: attach(model, "qv"))
    told["unknown"] = attempted(lambda: enable(model, {"b": 1.0, "c": 2.0}))
    told["weight"] = attempted(lambda: enable(model, {"a": float("nan")}))
    told["part of whole"] = attempted(lambda: enable(model, {"a": 0.5}))
    told["routed whole"] = attempted(lambda: public("route")(model, ["a"]).__enter__())
    told["clash"] = attempted(lambda: attach(model, adapter.copy(), name="b"))
    told["other base"] = attempted(lambda: attach(built("tied"), adapter.copy()))
    told["other model"] = attempted(lambda: attach(built("gpt2"), adapter.copy()))
    undo = public("merge")(model)
    told["merged"] = attempted(lambda: enable(model, None))
    told["attach merged"] = attempted(lambda: attach(model, spec, name="c"))
    public("unmerge")(model, undo)
    told["unmerged twice"] = attempted(lambda: public("unmerge")(model, undo))
    told["detach"] = attempted(lambda: public("detach")(model, "z"))
    told["no file"] = attempted(lambda: public("Adapter").load(folder / "none"))
    adapter.parameters().__next__().data.fill_(float("inf"))
    told["not finite"] = attempted(lambda: adapter.save(folder))
    told["merge of it"] = attempted(lambda: public("merge")(model))
    return told


CASES: dict[str, Callable[[Path], Any]] = {
    **{f"life-{name}": partial(life, text) for name, text in LIVES.items()},
    **{f"route-{name}": partial(routed, name) for name in ("llama", "gpt2", "bert", "t5")},
    "value-schedule": scheduled,
    "value-select": selected,
    "value-factors": factors,
    "value-adapter": values,
    "value-loralib": drop_in,
    "golden-llama": partial(golden, "llama"),
    "golden-gpt2": partial(golden, "gpt2"),
    "refusal-specs": refused_specs,
    "refusal-attach": refused_attach,
    "refusal-calls": refused_calls,
}
