"""The check that a gradient reaches every adapted module, also where a model skips layers."""

import pytest
import torch
from torch import nn

import lorakit
from lorakit.errors import TrainingError
from lorakit.train.checks import GradientCheck, count_steps_to_see


class Skipping(nn.Module):
    """Two layers, of which the second runs in every other forward, if at all."""

    def __init__(self, *, runs_second: bool):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.runs_second, self.calls = runs_second, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        x = self.first(x)
        return self.second(x) if self.runs_second and self.calls % 2 == 0 else x


def run(model: Skipping, steps: int) -> None:
    adapter = lorakit.attach(model, lorakit.Spec(rank=1))
    check = GradientCheck(steps)
    for _ in range(steps + 1):
        for parameter in adapter.parameters():
            parameter.grad = None
        model(torch.ones(1, 2)).sum().backward()
        check.see(adapter)


def test_a_layer_that_is_skipped_at_first_stops_no_run() -> None:
    run(Skipping(runs_second=True), 3)


def test_a_layer_that_never_runs_is_named_after_the_last_step() -> None:
    with pytest.raises(TrainingError) as caught:
        run(Skipping(runs_second=False), 3)
    assert str(caught.value) == (
        "In the first 3 steps 1 of 2 trained modules got no gradient.\n"
        "  second   no gradient arrives\n"
        "The loss does not depend on them: leave them out with --exclude."
    )


@pytest.mark.slow
@pytest.mark.parametrize(("layerdrop", "steps"), [(0.0, 1), (0.5, 25), (0.1, 8)])
def test_steps_follow_the_config(layerdrop: float, steps: int) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=16,
        hidden_size=8,
        word_embed_proj_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=16,
        layerdrop=layerdrop,
    )
    assert count_steps_to_see(OPTForCausalLM(config)) == steps
