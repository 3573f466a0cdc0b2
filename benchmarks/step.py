"""What does a step of training with LoRA cost, beside the frozen model's own forward and input-gradient, and beside PEFT?

Setting: a Llama of random weights on random tokens; rank 16 on all linear layers, AdamW on what trains, one thread. The base
is bfloat16, adapters are float32 on both sides (PEFT's and lorakit's default). "floor" is the frozen model with the gradient
of its input and nothing else. All variants live in one process and take turns, round by round; the time is the CPU time of
forward, backward and optimizer. Saved activations are the distinct storages that autograd keeps between forward and backward,
those of parameters left out.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from beside_peft import arguments, write
from torch import Tensor, nn

import lorakit


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model, its input and the adapter."""

    blocks: int = 6
    width: int = 640
    inner: int = 1792
    heads: int = 10
    vocabulary: int = 4096
    tokens: int = 1024
    rank: int = 16
    dropout: float = 0.0
    dtype: str = "bfloat16"
    device: str = "cpu"


def base(setting: Setting) -> nn.Module:
    """Return a Llama of random weights, the same for every variant."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=setting.vocabulary, hidden_size=setting.width, intermediate_size=setting.inner,
        num_hidden_layers=setting.blocks, num_attention_heads=setting.heads, num_key_value_heads=setting.heads,
        max_position_embeddings=8192, use_cache=False)  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(setting.device, getattr(torch, setting.dtype)).train()


def full(setting: Setting) -> nn.Module:
    return base(setting)


def floor(setting: Setting) -> nn.Module:
    return base(setting).requires_grad_(False)


def ours(setting: Setting) -> nn.Module:
    model = base(setting)
    lorakit.attach(model, lorakit.Spec(rank=setting.rank, dropout=setting.dropout))
    return model


def peft(setting: Setting) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=setting.rank, lora_alpha=32, target_modules="all-linear", lora_dropout=setting.dropout)
    return get_peft_model(base(setting), config)


VARIANTS: dict[str, Callable[[Setting], nn.Module]] = {"full": full, "floor": floor, "PEFT": peft, "lorakit": ours}


class Run:
    """One variant: a model, its optimizer and its input."""

    def __init__(self, name: str, setting: Setting, *, compiled: bool = False):
        self.name, self.model = name, VARIANTS[name](setting)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None
        self.ids = torch.randint(0, setting.vocabulary, (1, setting.tokens), device=setting.device,
                                 generator=torch.Generator(setting.device).manual_seed(1))  # fmt: skip
        self.forward: Any = torch.compile(self.model, fullgraph=True) if compiled else self.model
        # The gradient reaches the input of the first block, as it does where something below it trains.
        self.embedded = base(setting).get_input_embeddings()(self.ids).detach().requires_grad_(True)
        self.times: list[float] = []

    def loss(self) -> Tensor:
        logits = self.forward(inputs_embeds=self.embedded, use_cache=False).logits
        return nn.functional.cross_entropy(logits[0, :-1].float(), self.ids[0, 1:])

    def step(self) -> None:
        self.loss().backward()
        if self.optimizer:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def timed(self) -> None:
        begun = time.process_time()
        self.step()
        self.times.append(time.process_time() - begun)

    def saved(self) -> int:
        """Return the bytes that autograd keeps for the backward pass."""
        own = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        own |= {b.untyped_storage().data_ptr() for b in self.model.buffers()}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss()
        del loss
        return sum(kept.values())


def measure(setting: Setting, names: list[str], rounds: int, *, compiled: bool = False) -> list[dict[str, Any]]:
    """Run the variants in turn; return what each took."""
    runs, compiling = [], {}
    for name in names:
        runs.append(Run(name, setting, compiled=compiled))
        begun = time.process_time()
        runs[-1].step()
        compiling[name] = time.process_time() - begun
    saved = {run.name: run.saved() if not compiled else 0 for run in runs}
    gc.collect()
    for _ in range(rounds):
        for run in runs:
            run.timed()
    return [{"side": run.name, **asdict(setting), "compiled": compiled, "first": compiling[run.name], "min": min(run.times),
             "median": median(run.times), "saved": saved[run.name]} for run in runs]  # fmt: skip


def told(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows as the report shows them: beside PEFT and the floor of the same round."""
    by = {row["side"]: row for row in rows}
    for row in rows:
        form = "compiled" if row["compiled"] else f"dropout {row['dropout']:g}"
        row |= {"name": f"{row['side']}, {form}", "saved_mib": row["saved"] / 2**20,
                "of_floor": row["min"] / by["floor"]["min"],
                "of_peft": row["min"] / by["PEFT"]["min"] if "PEFT" in by else float("nan")}  # fmt: skip
    return rows


def met(text: str, value: float, most: float) -> dict[str, Any]:
    return {"text": text, "met": value <= most, "measured": f"{value:.3g}"}


def main() -> None:
    asked = arguments(__doc__, "--compiled: the compiled steps too")
    torch.set_num_threads(1)
    setting = Setting(blocks=1, width=64, inner=128, heads=2, vocabulary=128, tokens=32) if asked.quick else Setting()
    rounds = 2 if asked.quick else 7
    plain = told(measure(setting, ["full", "floor", "PEFT", "lorakit"], rounds))
    dropped = told(measure(replace(setting, dropout=0.05), ["floor", "PEFT", "lorakit"], rounds))
    fast = told(measure(setting, ["floor", "lorakit"], rounds, compiled=True)) if asked.compiled else []
    ours, ours_dropped = plain[-1], dropped[-1]
    criteria = [
        met("eager step, dropout 0: at most 1.08 of the floor", ours["of_floor"], 1.08),
        met(f"eager step, dropout 0: at most 0.65 of PEFT (the floor is {plain[1]['of_peft']:.2f})", ours["of_peft"], 0.65),
        met(f"eager step, dropout 0.05: at most 0.50 of PEFT (the floor is {dropped[0]['of_peft']:.2f})",
            ours_dropped["of_peft"], 0.50),
        met("saved activations, dropout 0, MiB: at most 36 above the floor", ours["saved_mib"] - plain[1]["saved_mib"], 36),
        met("saved activations, dropout 0.05, MiB: at most 46 above the floor",
            ours_dropped["saved_mib"] - dropped[0]["saved_mib"], 46),
        *(met("compiled step: at most 1.15 of the compiled floor", row["of_floor"], 1.15) for row in fast[-1:]),
    ]  # fmt: skip
    runs = [{**row, "side": row["name"]} for row in (*plain, *dropped, *fast)]
    write("step", __doc__, quick=asked.quick, runs=runs, criteria=criteria, one_row_a_run=True,
          measures={"min": ["CPU seconds, least", ".3f"], "median": ["median", ".3f"], "of_floor": ["of the floor", ".3f"],
                    "of_peft": ["of PEFT", ".3f"], "saved_mib": ["saved activations, MiB", ".0f"]})  # fmt: skip


if __name__ == "__main__":
    main()
