"""Lightning trains an adapted model: the optimizer gets the parameters of the adapter."""

import warnings

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

import lorakit

warnings.simplefilter("ignore")  # about calls of Lightning itself


def fresh_base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))


class Regression(lightning.LightningModule):
    """A base with an adapter, which learns to add."""

    def __init__(self) -> None:
        super().__init__()
        self.base = fresh_base()
        self.adapter = lorakit.attach(self.base, lorakit.Spec(rank=2, alpha=4))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.base(x).squeeze(-1), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.adapter.parameters(), lr=2e-2)

    def on_train_end(self) -> None:
        # Lightning's own checkpoints hold the whole model; this is the adapter alone.
        self.adapter.save("lightning-adapter")


x = torch.randn(256, 8)
y = x.sum(dim=1)
module = Regression()
frozen = [parameter.clone() for parameter in fresh_base().parameters()]
before = nn.functional.mse_loss(module.base(x).squeeze(-1), y).item()
trainer = lightning.Trainer(
    max_epochs=20,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(
    module,
    torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32),
)

again = fresh_base()
assert all(map(torch.equal, frozen, again.parameters()))
lorakit.attach(again, lorakit.Adapter.load("lightning-adapter"), trainable=False)
after = nn.functional.mse_loss(again(x).squeeze(-1), y).item()
print(f"mean squared error before: {before:.3f}, after: {after:.3f}")
assert after < 0.1 * before
