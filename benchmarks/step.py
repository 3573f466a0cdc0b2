"""What does a LoRA training step cost, compared with PEFT?

Setting: models with random weights (MiniLM with its own) on random tokens, rank 16 on all linear
layers, AdamW on the trained values, one thread. On both sides, the adapters are float32 (the
default of PEFT and of lorakit), on the same layers, with the same number of values. "full" trains
all parameters. "floor" is the frozen model with the gradient of its input and nothing else. Rows
without the name of a model are those of the first model, which has six blocks.

All variants run in one process and take turns, round by round. The time is the CPU time of forward,
backward and optimizer (on a GPU, the time between two events). Saved activations are the distinct
storages that autograd keeps between forward and backward, without those of parameters. The peak is
the maximum that the allocator has in use during a step, in addition to weights, adapters and
optimizer. The growth with rank and with length is measured on two blocks of the first model.

Run: `python benchmarks/step.py`; `--help` lists its flags; with `--quick` it only shows that it
works.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from beside_peft import parse_arguments, write
from head import measure_peak
from torch import Tensor, nn

import lorakit
from lorakit.compare.methods.trial import saved_tensors


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model, its input and the adapter; the model MiniLM is its encoder as it is, the others are
    Llamas of these sizes.
    """

    model: str = "six blocks"
    blocks: int = 6
    width: int = 640
    inner: int = 1792
    heads: int = 10
    vocabulary: int = 4096
    rows: int = 1
    tokens: int = 1024
    rank: int = 16
    dropout: float = 0.0
    dtype: str = "bfloat16"
    device: str = "cpu"


MINILM = "MiniLM"
MODELS = (
    Setting(),
    Setting(dropout=0.05),
    Setting(
        model=MINILM,
        width=384,
        inner=1536,
        heads=12,
        vocabulary=30522,
        rows=8,
        tokens=128,
        dtype="float32",
    ),
    Setting(model="deep and narrow", blocks=24, width=128, inner=352, heads=4, tokens=512),
    Setting(
        model="large vocabulary",
        blocks=2,
        width=256,
        inner=704,
        heads=4,
        vocabulary=65536,
        tokens=512,
    ),
)
RANKS, LENGTHS = (4, 16, 64, 256), (128, 256, 512, 1024, 2048, 4096)


def build_base(setting: Setting) -> nn.Module:
    """Return a model, the same for every variant."""
    from transformers import AutoModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if setting.model == MINILM:
        from lorakit.models.locate import locate

        model = AutoModel.from_pretrained(locate("builtin:minilm")[0], add_pooling_layer=False)
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=setting.vocabulary,
                hidden_size=setting.width,
                intermediate_size=setting.inner,
                num_hidden_layers=setting.blocks,
                num_attention_heads=setting.heads,
                num_key_value_heads=setting.heads,
                max_position_embeddings=8192,
                use_cache=False,
            )
        )
    return model.to(setting.device, getattr(torch, setting.dtype)).train()


def build_full(setting: Setting) -> nn.Module:
    return build_base(setting)


def build_floor(setting: Setting) -> nn.Module:
    return build_base(setting).requires_grad_(False)


def build_lorakit(setting: Setting) -> nn.Module:
    model = build_base(setting)
    lorakit.attach(model, lorakit.Spec(rank=setting.rank, dropout=setting.dropout))
    return model


def build_peft(setting: Setting) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=setting.rank, lora_alpha=32, target_modules="all-linear", lora_dropout=setting.dropout
    )
    return get_peft_model(build_base(setting), config)


VARIANTS: dict[str, Callable[[Setting], nn.Module]] = {
    "full": build_full,
    "floor": build_floor,
    "PEFT": build_peft,
    "lorakit": build_lorakit,
}


class Run:
    """One variant: a model, its optimizer and its input."""

    def __init__(self, name: str, setting: Setting, *, compiled: bool = False):
        self.name, self.model, self.gpu = name, VARIANTS[name](setting), setting.device == "cuda"
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.trained = sum(p.numel() for p in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None
        self.ids = torch.randint(
            0,
            setting.vocabulary,
            (setting.rows, setting.tokens),
            device=setting.device,
            generator=torch.Generator(setting.device).manual_seed(1),
        )
        self.forward: Any = torch.compile(self.model, fullgraph=True) if compiled else self.model
        # The gradient reaches the input of the first block, as it does where something below it
        # trains.
        self.embedded = (
            build_base(setting).get_input_embeddings()(self.ids).detach().requires_grad_(True)
        )
        self.times: list[float] = []
        self.backward: list[float] = []

    def loss(self) -> Tensor:
        out = self.forward(inputs_embeds=self.embedded, use_cache=False)
        if "logits" not in out:  # an encoder
            return out.last_hidden_state.float().square().mean()
        return nn.functional.cross_entropy(
            out.logits[:, :-1].float().flatten(0, 1), self.ids[:, 1:].flatten()
        )

    def step(self) -> None:
        self.loss().backward()
        self.update()

    def update(self) -> None:
        self.embedded.grad = None
        if self.optimizer:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def timed(self) -> None:
        made: list[Tensor] = []
        forward = time_call(lambda: made.append(self.loss()), gpu=self.gpu)
        backward = time_call(lambda: made.pop().backward(), gpu=self.gpu)
        self.backward.append(backward)
        self.times.append(forward + backward + time_call(self.update, gpu=self.gpu))

    def saved(self) -> int:
        """Return the bytes that autograd keeps for the backward pass."""
        with saved_tensors([*self.model.parameters(), *self.model.buffers()]) as kept:
            loss = self.loss()
        del loss
        return sum(kept.values())

    def peak(self) -> int:
        """Return the most bytes that a step has in use above what is there before it."""
        if not self.gpu:
            return measure_peak(self.step)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def time_call(call: Callable[[], None], *, gpu: bool) -> float:
    """Return the CPU time of a call; on a GPU the time between two events around it."""
    if not gpu:
        begun = time.process_time()
        call()
        return time.process_time() - begun
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    call()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1000


def measure(
    setting: Setting, names: Sequence[str], rounds: int, *, compiled: bool = False
) -> list[dict[str, Any]]:
    """Run the variants in turn; return what each took, beside PEFT and the floor."""
    runs, first = [], {}
    for name in names:
        runs.append(Run(name, setting, compiled=compiled))
        first[name] = time_call(runs[-1].step, gpu=runs[-1].gpu)
    if len({run.trained for run in runs if run.name in ("PEFT", "lorakit")}) > 1:
        raise SystemExit(
            f"{setting.model}: the two sides train {[(run.name, run.trained) for run in runs]} "
            "values."
        )
    saved = {run.name: run.saved() / 2**20 for run in runs if not compiled}
    peaks = {run.name: run.peak() / 2**20 for run in runs if not compiled}
    gc.collect()
    for _ in range(rounds):
        for run in runs:
            run.timed()
    least = {run.name: min(run.times) for run in runs}
    form = "compiled" if compiled else f"dropout {setting.dropout:g}"
    side_of = {
        n: f"{n}, {form}" if setting.model == MODELS[0].model else f"{setting.model}: {n}"
        for n in names
    }
    return [
        {
            "side": side_of[run.name],
            "variant": run.name,
            **asdict(setting),
            "compiled": compiled,
            "rounds": rounds,
            "first": first[run.name],
            "min": least[run.name],
            "median": median(run.times),
            "backward": min(run.backward),
            "trained": run.trained,
            "saved_mib": saved.get(run.name),
            "peak_mib": peaks.get(run.name),
            "of_floor": least[run.name] / least["floor"],
            "of_peft": least[run.name] / least["PEFT"] if "PEFT" in least else None,
        }
        for run in runs
    ]


def make_criterion(text: str, value: float, most: float) -> dict[str, Any]:
    return {"text": text, "met": value <= most, "measured": f"{value:.3g}"}


def check_criteria(
    plain: dict[str, Any], dropped: dict[str, Any], fast: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the targets, and whether they are met.

    Args:
        plain: rows of the first model by variant.
        dropped: the same with dropout.
        fast: compiled; empty where that was not asked for.
    """
    ours, theirs, least = (plain[name] for name in ("lorakit", "PEFT", "floor"))
    return [
        make_criterion(
            "eager step, dropout 0: at most 1.08 times the floor", ours["of_floor"], 1.08
        ),
        make_criterion(
            f"eager step, dropout 0: at most 0.65 times PEFT (floor: {least['of_peft']:.2f})",
            ours["of_peft"],
            0.65,
        ),
        make_criterion(
            "eager step, dropout 0.05: at most 0.50 times PEFT (floor: "
            f"{dropped['floor']['of_peft']:.2f})",
            dropped["lorakit"]["of_peft"],
            0.50,
        ),
        make_criterion(
            "saved activations, dropout 0, MiB: at most 36 above the floor",
            ours["saved_mib"] - least["saved_mib"],
            36,
        ),
        make_criterion(
            "saved activations, dropout 0.05, MiB: at most 46 above the floor",
            dropped["lorakit"]["saved_mib"] - dropped["floor"]["saved_mib"],
            46,
        ),
        make_criterion(
            "peak of a step, dropout 0: at most that of PEFT",
            ours["peak_mib"] / theirs["peak_mib"],
            1.0,
        ),
        *(
            [
                make_criterion(
                    "compiled step: at most 1.15 times the compiled floor",
                    fast["lorakit"]["of_floor"],
                    1.15,
                )
            ]
            if fast
            else []
        ),
    ]


def measure_growth(
    small: Setting, rounds: int, ranks: Sequence[int], lengths: Sequence[int]
) -> dict[str, list[dict[str, Any]]]:
    """Return what each rank and each length takes."""
    names = ("floor", "PEFT", "lorakit")
    return {
        "rank": [row for r in ranks for row in measure(replace(small, rank=r), names, rounds)],
        "tokens": [
            row for n in lengths for row in measure(replace(small, tokens=n), names, rounds)
        ],
    }


def main() -> None:
    asked = parse_arguments(__doc__, "--cuda: on the GPU")
    torch.set_num_threads(1)
    device = "cuda" if asked.cuda else "cpu"
    tiny = {
        "blocks": 1,
        "width": 64,
        "inner": 128,
        "heads": 2,
        "vocabulary": 128,
        "tokens": 32,
        "rows": 1,
    }
    models = [replace(m, device=device, **(tiny if asked.quick else {})) for m in MODELS]
    brief, names = asked.quick or asked.short, ("full", "floor", "PEFT", "lorakit")
    rounds = 2 if brief else 6
    tables = [measure(m, names if not m.dropout else names[1:], rounds) for m in models]
    fast = measure(models[0], ("floor", "lorakit"), rounds, compiled=True) if not brief else []
    small = replace(models[0], blocks=min(2, models[0].blocks))
    curves = measure_growth(
        small,
        2 if brief else 4,
        RANKS[:: 2 if brief else 1] if not asked.quick else (4,),
        LENGTHS[:: 3 if brief else 1] if not asked.quick else (32,),
    )
    by = [{row["variant"]: row for row in table} for table in (*tables[:2], fast)]
    name = "step_cuda" if asked.cuda else "step"
    write(
        name,
        __doc__,
        quick=brief,
        criteria=check_criteria(*by),
        curves=curves,
        one_row_a_run=True,
        notes=[],
        gpu=torch.cuda.get_device_name(0) if asked.cuda else None,
        runs=[row for table in (*tables, fast) for row in table],
        measures={
            "min": ["CPU seconds, minimum" if not asked.cuda else "seconds, minimum", ".3f"],
            "median": ["median", ".3f"],
            "backward": ["backward only", ".3f"],
            "of_floor": ["ratio to the floor", ".3f"],
            "of_peft": ["ratio to PEFT", ".3f"],
            "saved_mib": ["saved activations, MiB", ".0f"],
            "peak_mib": ["peak of the step, MiB", ".0f"],
        },
    )


if __name__ == "__main__":
    main()
