"""What do mixed batches and switching between adapters cost?

Setting: a Llama with random weights (1 layer, width 512, MLP 1024), rank 16 on all linear layers,
one thread, no gradient. In a mixed batch, `route` gives each row its own adapter. The batches have
8 or 32 rows, of 1 token (as in generation) or 128 tokens (as in reading a prompt), and 1 to 32
adapters, which are assigned to the rows in turn. "8 x 128" means 8 rows of 128 tokens.

`route` is compared with the base without adapters; with one adapter for all rows (`enable`); and
with one forward pass per adapter on its rows, one after the other. In each round, each of these
runs once, in turn. The figures are medians over the rounds of the ratio to the base in the same
round. Other work on the machine makes single rounds noisy. The last column is the first forward
pass in a `with lorakit.route(...)` block.

Switching is measured on the same model: between two adapters by `enable`, and with merged weights
(`unmerge`, `enable`, `merge`), compared with reading the model from disk again.

Criteria: with several adapters, `route` takes less time than one pass per adapter. After switching
to another adapter and back, weights and outputs have the same bits.

Predicted: at 1 token per row and 8 adapters, `route` takes 1.1 to 2 times as long as the base, and
one pass per adapter 3 to 8 times as long; at 128 tokens, `route` takes about as long as one adapter
for all rows.

Run: `python benchmarks/rows.py`; `--help` lists its flags; with `--quick` it only shows that it
works.
"""

import tempfile
import time
from collections.abc import Callable
from statistics import median

import torch
from beside_peft import parse_arguments, write
from transformers import LlamaConfig, LlamaForCausalLM

import lorakit

ADAPTERS, RANK = (1, 4, 8, 32), 16
ROUNDS = {1: 7, 128: 2}


def build_base() -> LlamaForCausalLM:
    """Return the same random model every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=1000,
            hidden_size=512,
            intermediate_size=1024,
            num_hidden_layers=1,
            num_attention_heads=8,
        )
        return LlamaForCausalLM(config).eval()


def build_adapted(count: int) -> LlamaForCausalLM:
    """Return it with so many adapters, B filled."""
    model = build_base()
    for at in range(count):
        adapter = lorakit.attach(
            model, lorakit.Spec(rank=RANK), name=f"a{at}", seed=at, trainable=False
        )
        for delta in adapter.deltas.values():
            torch.nn.init.normal_(delta.B, std=0.02)
    return model


def time_call(call: Callable[[], object]) -> float:
    """Return the CPU seconds of a call."""
    begun = time.process_time_ns()
    call()
    return (time.process_time_ns() - begun) / 1e9


def measure_rows(
    model: LlamaForCausalLM, rows: int, tokens: int, adapters: int, rounds: int
) -> dict[str, float]:
    """Return the median ratios to the base of one shape."""
    ids = torch.randint(1000, (rows, tokens), generator=torch.Generator().manual_seed(0))
    names = [f"a{at % adapters}" for at in range(rows)]

    def forward(part: torch.Tensor = ids) -> torch.Tensor:
        return model.model(input_ids=part, use_cache=False).last_hidden_state

    def each() -> list[torch.Tensor]:
        found = []
        for at in range(adapters):
            lorakit.enable(model, f"a{at}")
            found.append(forward(ids[at::adapters]))
        return found

    found: dict[str, list[float]] = {"one": [], "each": [], "first": [], "routed": []}
    with torch.inference_mode():
        for at in range(-1, rounds):  # one round to warm up
            lorakit.enable(model, None)
            alone = time_call(forward)
            lorakit.enable(model, "a0")
            seconds = {"one": time_call(forward), "each": time_call(each)}
            with lorakit.route(model, names):
                seconds |= {"first": time_call(forward), "routed": time_call(forward)}
                got = forward() if at < 0 else None
            if got is not None and any(
                (got[i::adapters] - part).abs().max() > 0.05 * part.abs().max()
                for i, part in enumerate(each())
            ):
                raise SystemExit("Routed rows are not what they are alone.")
            if at >= 0:
                for name, value in seconds.items():
                    found[name].append(value / alone)
    return {name: median(values) for name, values in found.items()}


def measure_switching(rounds: int) -> tuple[dict[str, float], bool]:
    """Return CPU milliseconds of each way to go from one adapter to another, and whether all bits
    came back.
    """
    model, ids = build_adapted(2), torch.arange(32).view(2, 16)
    found: dict[str, list[float]] = {"enable": [], "merged": [], "read again": []}
    bits: dict[str, list[torch.Tensor]] = {}
    same = True
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        build_base().save_pretrained(folder)
        for at in range(2 * rounds):
            name = f"a{at % 2}"
            found["enable"].append(time_call(lambda name=name: lorakit.enable(model, name)))
            undo = lorakit.merge(model)
            now = [model(input_ids=ids).logits, *(p.clone() for p in model.parameters())]
            same &= all(
                torch.equal(a, b) for a, b in zip(now, bits.setdefault(name, now), strict=True)
            )

            swapped: list[lorakit.Undo] = []

            def swap(
                undo: lorakit.Undo = undo,
                other: str = f"a{1 - at % 2}",
                swapped: list[lorakit.Undo] = swapped,
            ) -> None:
                lorakit.unmerge(model, undo)
                lorakit.enable(model, other)
                swapped.append(lorakit.merge(model))

            found["merged"].append(time_call(swap))
            lorakit.unmerge(model, swapped[0])
            found["read again"].append(time_call(lambda: LlamaForCausalLM.from_pretrained(folder)))
    return {name: 1e3 * median(values) for name, values in found.items()}, same


def main() -> None:
    asked = parse_arguments(__doc__)
    quick, most = asked.quick, 1 if asked.quick else 5 if asked.short else 1 << 30
    torch.set_num_threads(1)
    runs = []
    for dtype in (torch.float32, torch.bfloat16):
        for adapters in ADAPTERS[: 2 if quick else None]:
            model = build_adapted(adapters).to(dtype)
            for rows in (8, 32):
                for tokens, rounds in ROUNDS.items():
                    if adapters <= rows and not (quick and tokens * rows > 100):
                        shape = f"{str(dtype)[6:]}, {rows} x {tokens}, adapters: {adapters}"
                        runs.append(
                            {
                                "side": shape,
                                "adapters": adapters,
                                **measure_rows(model, rows, tokens, adapters, min(rounds, most)),
                            }
                        )
                        print(runs[-1], flush=True)
    switch, same = measure_switching(1 if quick else 5)
    several = [r for r in runs if r["adapters"] > 1]
    slower = [r["side"] for r in several if r["routed"] >= r["each"]]
    criteria = [
        {
            "text": "several adapters: `route` takes less time than one pass per adapter",
            "met": not slower,
            "measured": f"{len(several) - len(slower)} of {len(several)} shapes"
            + (f"; not {', '.join(slower)}" if slower else ""),
        },
        {
            "text": "switching to another adapter and back restores all bits",
            "met": same,
            "measured": "all tensors" if same else "differ",
        },
    ]
    size = sum(p.numel() for p in build_base().parameters())
    notes = [
        f"Switching adapters on this model ({size:,} parameters), in CPU milliseconds: "
        f"{switch['enable']:.2f} by `enable`, {switch['merged']:.1f} with merged weights, "
        f"{switch['read again']:.1f} by reading the model from disk again."
    ]
    write(
        "rows",
        __doc__,
        quick=quick or asked.short,
        runs=runs,
        criteria=criteria,
        notes=notes,
        one_row_a_run=True,
        measures={
            "one": ["one adapter for all rows", ".2f"],
            "each": ["one pass per adapter", ".2f"],
            "routed": ["`route`", ".2f"],
            "first": ["`route`, first pass of a block", ".2f"],
        },
    )


if __name__ == "__main__":
    main()
