"""Models in int8 or 4 bits on a CPU: adapted, trained, saved, read back, merged into 16 bits."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    TorchAoConfig,
)

import lorakit
from lorakit.cli.__main__ import main
from lorakit.merging.quantised import dequantised_parameters
from lorakit.sites.quantised import without_packing

from ..laws.table import fill
from .tied import IDS, SIZES, logits

ASKED = "pip install 'lorakit[quantised]'"


def torchao() -> Any:
    quantization = pytest.importorskip("torchao.quantization", reason=ASKED)
    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


def torchao_int4() -> Any:
    quantization = pytest.importorskip("torchao.quantization", reason=ASKED)
    size = quantization.granularity.PerGroup(16)
    return TorchAoConfig(
        quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=size)
    )


def bitsandbytes(**how: Any) -> Any:
    pytest.importorskip("bitsandbytes", reason=ASKED)
    return BitsAndBytesConfig(**how)


FORMS: dict[str, Callable[[], Any]] = {
    "torchao": torchao,
    "int8 of bitsandbytes": lambda: bitsandbytes(load_in_8bit=True),
    "nf4 of bitsandbytes": lambda: bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                **{**SIZES, "hidden_size": 64, "intermediate_size": 64}, num_key_value_heads=2
            )
        )
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_coarse_base_of_transformers_is_trained_and_read_back(
    form: str, base: Path, tmp_path: Path
) -> None:
    def compressed() -> Any:
        return LlamaForCausalLM.from_pretrained(
            base, quantization_config=FORMS[form](), device_map="cpu", dtype=torch.float32
        )

    model = compressed()
    place = lorakit.select(model, "qv")["model.layers.0.self_attn.q_proj"]
    assert form.split(" ")[0] in place.site.quantised_form(place.layer)
    adapter = lorakit.attach(model, lorakit.Spec(rank=2, targets="qv"))
    optimizer, losses = torch.optim.Adam(adapter.parameters(), lr=1e-2), []
    for _ in range(4):
        loss = model(input_ids=IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[1:]) < losses[0] - 0.1
    after = logits(model)
    read = lorakit.Adapter.load(adapter.save(tmp_path / "adapter"))
    again = compressed()
    lorakit.attach(again, read)
    assert read == adapter and torch.equal(logits(again), after)
    lorakit.enable(model, None)
    with without_packing(plain := compressed()):
        assert torch.equal(logits(model), logits(plain))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_command_merges_it_into_a_16_bit_copy(
    form: str, tiny_llama: Path, tmp_path: Path
) -> None:
    compressed = LlamaForCausalLM.from_pretrained(
        tiny_llama, quantization_config=FORMS[form](), device_map="cpu", dtype=torch.float32
    )
    adapter = fill(lorakit.attach(compressed, lorakit.Spec(rank=2, alpha=2.0, targets="qv")))
    adapter.save(tmp_path / "adapter")
    arguments = [
        "merge",
        "--model",
        str(tiny_llama),
        "--adapter",
        str(tmp_path / "adapter"),
        "--output",
        str(tmp_path / "merged"),
    ]
    assert (
        main([*arguments, "--dtype", "bfloat16"]) != 0 and not (tmp_path / "merged").exists()
    )  # other base weights
    assert main([*arguments, "--dtype", "bfloat16", "--any-base"]) == 0
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert merged.dtype == torch.bfloat16
    want = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    lorakit.attach(want, lorakit.Adapter.load(tmp_path / "adapter"), any_base=True)
    ids = torch.arange(12).view(2, 6) + 3
    with torch.no_grad():
        got, exact = merged(ids).logits.float(), want(ids).logits
    assert float((got - exact).norm() / exact.norm()) < 0.05


ALL = {
    **FORMS,
    "int4 of torchao": torchao_int4,
    "fp4 of bitsandbytes": lambda: bitsandbytes(
        load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [f if f == "nf4 of bitsandbytes" else pytest.param(f, marks=pytest.mark.slow) for f in ALL],
)
def test_the_command_merges_into_a_coarse_folder(
    form: str, tiny_llama: Path, tmp_path: Path, capsys: Any
) -> None:
    def read(folder: Path) -> Any:
        return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu")

    compressed = LlamaForCausalLM.from_pretrained(
        tiny_llama, quantization_config=ALL[form](), device_map="cpu", dtype=torch.float32
    )
    compressed.save_pretrained(tmp_path / "compressed")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "compressed")
    for name, alpha in (("strong", 2.0), ("weak", 0.003)):
        fill(lorakit.attach(compressed, lorakit.Spec(rank=2, alpha=alpha, targets="qv"))).save(
            tmp_path / name
        )
        lorakit.detach(compressed)

    def merge_into(name: str, output: str, *more: str) -> tuple[int, Any]:
        capsys.readouterr()
        code = main(
            [
                "merge",
                "--model",
                str(tmp_path / "compressed"),
                "--adapter",
                str(tmp_path / name),
                "--output",
                str(tmp_path / output),
                *more,
                "--json",
            ]
        )
        said = capsys.readouterr()
        return code, json.loads(said.out) if code == 0 else said.err + said.out

    code, said = merge_into("strong", "merged")
    assert code == 0, said
    assert said["dtype"].endswith(form.split(" ")[-1])
    assert len(said["rounding"]) == 4 and all(
        0 < r["rounding"] < r["adapter"] for r in said["rounding"].values()
    )
    want = read(tmp_path / "compressed")
    lorakit.attach(want, lorakit.Adapter.load(tmp_path / "strong"))
    lorakit.merge(want)
    lorakit.detach(want)
    got, merged = read(tmp_path / "merged"), dequantised_parameters(want)
    assert {
        k: torch.equal(v, merged[k]) for k, v in dequantised_parameters(got).items()
    } == dict.fromkeys(merged, True)
    assert lorakit.select(got, "q")["model.layers.0.self_attn.q_proj"].site.quantised_form(
        got.model.layers[0].self_attn.q_proj
    )

    code, said = merge_into("weak", "nothing")
    assert code == 2 and not (tmp_path / "nothing").exists()
    assert all(
        way in said
        for way in (
            "--dtype bfloat16",
            "any_base=True",
            "use the adapter unmerged",
            "--allow-loss",
            "allow_loss=True",
        )
    )
    code, said = merge_into("weak", "lossy", "--allow-loss")
    assert code == 0 and (tmp_path / "lossy" / "config.json").is_file()
    assert any(r["rounding"] >= r["adapter"] for r in said["rounding"].values())

    code, said = merge_into("strong", "wide", "--dtype", "bfloat16")
    assert code == 0, said
    assert said["dtype"] == "bfloat16" and "rounding" not in said
    plain = LlamaForCausalLM.from_pretrained(tmp_path / "wide", dtype="auto")
    assert plain.dtype == torch.bfloat16 and "quantization_config" not in plain.config.to_dict()
    base, adapter = (
        dequantised_parameters(read(tmp_path / "compressed")),
        lorakit.Adapter.load(tmp_path / "strong"),
    )
    for name, delta in adapter.deltas.items():
        exact = base[f"{name}.weight"].float() + delta.matrix().detach()
        assert torch.equal(plain.get_submodule(name).weight, exact.bfloat16())


@pytest.mark.slow
def test_int8_that_was_never_converted_is_refused(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bitsandbytes", reason=ASKED)
    if torch.cuda.is_available():
        pytest.skip("bitsandbytes converts the weights on a GPU")
    folder = tmp_path / "asked"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"load_in_8bit": True, "quant_method": "bitsandbytes"}
    (folder / "config.json").write_text(json.dumps(config))
    data = tmp_path / "d.txt"
    data.write_text("the cat")
    assert main(["eval", "--model", str(folder), "--data", str(data)]) == 2
    assert "asks for quantised weights" in capsys.readouterr().err
