"""Does lorakit have the same loss curve as PEFT, step by step?

Setting: 50 steps in float32. The initial A is copied from lorakit to PEFT, and B is zero. Both
sides have the same batches, learning rates and gradient clipping. Two models are trained:
stories260K with rank 8 on all linear layers, on passages of oz-books; and MiniLM with rank 8 on
query and value and a new head, on sst2, with the base's dropout set to 0. Each is trained with a
scale of 4, which is exact in binary, and with a scale of 1.3, which is not. lorakit scales the
activations between A and B, and PEFT those after B, so with 1.3 the two round differently.

Criterion: the largest |loss of lorakit - loss of PEFT| of the curve is at most 1e-5.

Predicted: exactly 0 at scale 4, because multiplication by a power of two rounds nothing; about 1e-6
at scale 1.3, because a rounding error of 6e-8 in a loss of about 4 grows a little over 50 steps.

Run: `python benchmarks/parity.py`; `--help` lists its flags; with `--quick` it only shows that it
works.
"""

from dataclasses import replace

import oz_books
import sst2
import torch
from beside_peft import (
    SIDES,
    Setting,
    adapt,
    copy_start,
    find_model,
    parse_arguments,
    score,
    train,
    write,
)

from lorakit.data.encode import Example
from lorakit.models.load import load

STEPS, BOUND = 50, 1e-5


def train_curves(setting: Setting, examples: list[Example]) -> dict[str, list[float]]:
    """Train both sides from the same start; return the losses of every step."""
    sides = {side: adapt(side, setting, seed=0) for side in SIDES}
    if sides["lorakit"].adapted != sides["peft"].adapted:
        raise SystemExit(
            f"The two adapt other layers: {sides['lorakit'].adapted ^ sides['peft'].adapted}"
        )
    copy_start(sides["lorakit"], sides["peft"])
    for side in sides.values():
        for module in side.loaded.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    return {
        name: [*train(side, examples, setting, seed=0), score(side, examples[:64])["loss"]]
        for name, side in sides.items()
    }


def main() -> None:
    quick = parse_arguments(__doc__).quick
    runs, criteria = [], []
    for name, source, title in (
        ("stories260K", oz_books, "stories260K, all linear"),
        ("minilm", sst2, "MiniLM, query and value"),
    ):
        base = replace(
            source.SETTING, steps=3 if quick else STEPS, batch_size=4 if quick else 16, threads=1
        )
        loaded = load(find_model(base.model), base.task, labels=base.labels)
        examples = source.encode_examples(loaded)["train"][:1600]
        for scale in (4.0, 1.3):
            setting = replace(base, alpha=scale * base.rank)
            found = train_curves(setting, [cut(e) for e in examples])
            gaps = [abs(a - b) for a, b in zip(found["lorakit"], found["peft"], strict=True)]
            row = {
                "side": title,
                "model": name,
                "scale": scale,
                "steps": setting.steps,
                "lr": setting.lr,
                "gap": max(gaps[:-1]),
                "gap_held_out": gaps[-1],
                "loss_first": found["lorakit"][0],
                "loss_last": found["lorakit"][-2],
                **found,
            }
            runs.append(row)
            print({k: v for k, v in row.items() if not isinstance(v, list)}, flush=True)
            criteria.append(
                {
                    "text": f"{title}, scale {scale:g}: the curves differ by at most {BOUND:g}",
                    "met": max(gaps) <= BOUND,
                    "measured": f"{max(gaps):.2g}",
                }
            )
    write(
        "parity",
        __doc__,
        quick=quick,
        runs=runs,
        criteria=criteria,
        one_row_a_run=True,
        measures={
            "scale": ["scale", "g"],
            "loss_first": ["first loss", ".4f"],
            "loss_last": ["last loss", ".4f"],
            "gap": ["largest difference of the curve", ".2g"],
            "gap_held_out": ["difference after training, in eval mode", ".2g"],
        },
    )


def cut(example: Example) -> Example:
    """Return the first 128 tokens: here short sequences do as well as long ones; those of sst2 are
    shorter anyway.
    """
    return replace(example, ids=example.ids[:128], labels=example.labels[:128])


if __name__ == "__main__":
    main()
