"""Every setting of a convolution against the dense formula, and a ResNet-20."""

import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lorakit
from lorakit import Adapter, Spec

from ..laws.table import Patches, error, fill, randn, same_bits, state

PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
KERNELS = {1: [(1,), (3,), (2,)], 2: [(1, 1), (3, 3), (2, 3)], 3: [(1, 1, 1), (3, 3, 3), (2, 1, 3)]}
SIZE = {1: (9,), 2: (5, 6), 3: (3, 4, 5)}
MODES = {
    "zeros": "constant",
    "reflect": "reflect",
    "replicate": "replicate",
    "circular": "circular",
}
ALPHA = 3.0


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Using padding='same' with even kernel lengths", UserWarning
        )
        yield


def filled(layer: nn.Module) -> nn.Module:
    for seed, parameter in enumerate(layer.double().parameters()):
        parameter.data.copy_(randn(*parameter.shape, seed=50 + seed) / 2)
    return layer


def change(adapter: Adapter, scale: float) -> Tensor:
    return scale * (adapter.deltas["0"].B @ adapter.deltas["0"].A).detach()


def holds(layer: nn.Module, formula: Patches, x: Tensor, **call: object) -> None:
    """Assert that attached and merged are the dense formula of the changed kernel, also for an
    input without a batch.
    """
    model = nn.Sequential(filled(layer))
    before = layer.weight.detach().clone()
    shape = before.flatten(1).shape
    rank = min(2, *shape)
    adapter = fill(
        lorakit.attach(model, Spec(rank=rank, alpha=ALPHA, targets=["0"], dtype="float64"))
    )
    delta = change(adapter, ALPHA / rank)
    want = formula.dense(
        before + (delta.T if formula.transposed else delta).reshape(before.shape), layer.bias, x
    )
    assert error(formula.dense(before, layer.bias, x), want) > 0.01
    assert error(layer(x, **call), want) < 1e-9
    assert error(layer(x[0], **call), want[0]) < 1e-9
    undo = lorakit.merge(model)
    assert error(layer(x, **call), want) < 1e-9
    lorakit.unmerge(model, undo)
    assert torch.equal(layer.weight, before)


def settings(dims: int) -> Iterator[tuple[tuple[int, ...], int, int, int, object]]:
    for kernel, stride, dilation, groups in product(KERNELS[dims], (1, 2), (1, 2), (1, 2, 4)):
        for padding in (0, 1, "same") if stride == 1 else (0, 1):
            if all(
                n + 2 * (padding == 1) > dilation * (k - 1)
                for n, k in zip(SIZE[dims], kernel, strict=True)
            ):
                yield kernel, stride, dilation, groups, padding


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_attached_and_merged_equal_dense(dims: int, mode: str) -> None:
    x, held = randn(2, 4, *SIZE[dims], seed=3), 0
    for kernel, stride, dilation, groups, padding in settings(dims):
        total = [dilation * (k - 1) if padding == "same" else 2 * int(padding) for k in kernel]
        around = tuple((n // 2, n - n // 2) for n in total)
        formula = Patches(kernel, (stride,) * dims, (dilation,) * dims, around, groups, MODES[mode])
        layer = PLAIN[dims - 1](
            4,
            8 if groups == 2 else 4,
            kernel,
            stride,
            padding,
            dilation,
            groups,
            bias=groups != 2,
            padding_mode=mode,
        )
        holds(layer, formula, x)
        held += 1
    assert held >= 60


@pytest.mark.slow
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_transposed_attached_and_merged_equal_dense(dims: int) -> None:
    x, held = randn(2, 4, *SIZE[dims], seed=3), 0
    for kernel, stride, padding, extra, dilation, groups in product(
        KERNELS[dims], (1, 2), (0, 1), (0, 1), (1, 2), (1, 2, 4)
    ):
        if extra >= max(stride, dilation):
            continue  # torch refuses it
        layer = TRANSPOSED[dims - 1](
            4,
            8 if groups == 2 else 4,
            kernel,
            stride,
            padding,
            extra,
            groups,
            groups != 2,
            dilation,
        )
        formula = Patches(
            kernel,
            (stride,) * dims,
            (dilation,) * dims,
            ((padding, padding),) * dims,
            groups,
            transposed=True,
            extra=(extra,) * dims,
        )
        holds(layer, formula, x)
        held += 1
    assert held >= 90


@pytest.mark.slow
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_output_size_is_followed(dims: int) -> None:
    x = randn(2, 4, *SIZE[dims], seed=3)
    for extra in product((0, 1, 2), repeat=dims):
        layer = TRANSPOSED[dims - 1](4, 6, 2, stride=3, padding=1, output_padding=1, groups=2)
        formula = Patches(
            (2,) * dims, (3,) * dims, (1,) * dims, ((1, 1),) * dims, 2, transposed=True, extra=extra
        )
        size = [(n - 1) * 3 - 2 + 2 + e for n, e in zip(SIZE[dims], extra, strict=True)]
        holds(layer, formula, x, output_size=size)
    model = nn.Sequential(filled(TRANSPOSED[dims - 1](4, 6, 2, stride=3)))
    fill(lorakit.attach(model, Spec(rank=2, targets=["0"], dtype="float64")))
    assert torch.equal(
        model[0](output_size=[n * 3 for n in SIZE[dims]], input=x),
        model[0](x, [n * 3 for n in SIZE[dims]]),
    )


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_merge_writes_through_channels_last(dims: int, transposed: bool) -> None:
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    layer = filled(
        (TRANSPOSED if transposed else PLAIN)[dims - 1](6, 4, KERNELS[dims][2], groups=2)
    ).to(memory_format=layout)
    model = nn.Sequential(layer)
    before, strides = layer.weight.detach().clone(), layer.weight.stride()
    assert not layer.weight.is_contiguous()
    adapter = fill(lorakit.attach(model, Spec(rank=2, alpha=ALPHA, targets=["0"], dtype="float64")))
    x = randn(2, 6, *SIZE[dims]).to(memory_format=layout)
    want, delta = model(x), change(adapter, ALPHA / 2)
    undo = lorakit.merge(model)
    assert layer.weight.stride() == strides
    assert (
        error(layer.weight, before + (delta.T if transposed else delta).reshape(before.shape))
        < 1e-12
    )
    assert error(model(x), want.detach()) < 1e-9
    lorakit.unmerge(model, undo)
    assert torch.equal(layer.weight, before) and layer.weight.stride() == strides


@pytest.mark.parametrize(
    "layer",
    [nn.Conv1d(8, 6, 1, groups=2), nn.ConvTranspose1d(8, 6, 3, groups=2)],
    ids=["plain", "transposed"],
)
def test_start_is_scaled_by_the_inputs_of_one_group(layer: nn.Module) -> None:
    A = lorakit.attach(nn.Sequential(layer), Spec(rank=3, targets=["0"])).deltas["0"].A
    assert 8**-0.5 < float(A.detach().abs().max()) <= 4**-0.5


class Block(nn.Module):
    """Two convolutions beside a shortcut without parameters (option A): every second pixel, zeros
    for new channels.
    """

    def __init__(self, inputs: int, planes: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = (
            nn.Conv2d(inputs, planes, 3, stride, 1, bias=False),
            nn.BatchNorm2d(planes),
        )
        self.conv2, self.bn2 = (
            nn.Conv2d(planes, planes, 3, 1, 1, bias=False),
            nn.BatchNorm2d(planes),
        )
        self.stride, self.new = stride, planes - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = x[:, :, :: self.stride, :: self.stride]
        return F.relu(y + F.pad(short, (0, 0, 0, 0, self.new // 2, self.new // 2)))


class ResNet20(nn.Module):
    """He et al., arXiv 1512.03385, section 4.2, with n = 3."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


@pytest.fixture(scope="module")
def resnet_file(shared: Path) -> Path:
    return shared / "models" / "resnet20-cifar10" / "resnet20.th"


def resnet(file: Path) -> ResNet20:
    model = ResNet20()
    stored = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({key.removeprefix("module."): tensor for key, tensor in stored.items()})
    return model.eval()


def images(shared: Path, count: int = 16) -> tuple[Tensor, Tensor]:
    """Return CIFAR-10 test images as the model takes them, and their labels; noise where nothing
    can decode a JPEG.
    """
    import io

    import numpy as np

    try:
        from PIL import Image
    except ImportError:
        return randn(count, 3, 32, 32).float(), torch.arange(count) % 10
    packed = np.load(shared / "sets" / "cifar10-jpg" / "test.npz")
    parts = [
        packed["jpg"][packed["off"][i] : packed["off"][i + 1]].tobytes()
        for i in range(0, 10000, 10000 // count)
    ][:count]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(part)).convert("RGB")) for part in parts])
    x = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    labels = torch.tensor(packed["label"][: 10000 : 10000 // count][:count].astype("int64"))
    return (x - mean.view(3, 1, 1)) / std.view(3, 1, 1), labels


CONVS = ["conv1", *(f"layer{n}.{b}.conv{c}" for n in (1, 2, 3) for b in range(3) for c in (1, 2))]


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_resnet_trains_merges_and_is_saved(
    resnet_file: Path, shared: Path, optimizer: str, tmp_path: Path
) -> None:
    model, (x, labels) = resnet(resnet_file), images(shared)
    base, values = model(x).detach(), state(model)
    spec = Spec(rank=4, alpha=8, targets=[*CONVS, "linear"])
    adapter = lorakit.attach(model, spec)
    assert torch.equal(model(x), base)
    told = lorakit.coverage(model)
    assert (
        [m["name"] for m in told.modules] == [*CONVS, "linear"]
        and not told.skipped
        and not told.unreachable
    )
    assert [
        m["shape"] for m in told.modules if m["name"] in ("conv1", "layer2.0.conv1", "linear")
    ] == [[16, 27], [32, 144], [10, 64]]
    assert (
        told.trainable_parameters
        == adapter.parameters_count
        == sum(4 * sum(m["shape"]) for m in told.modules)
    )
    assert (
        told.total_parameters
        == sum(p.numel() for p in ResNet20().parameters()) + adapter.parameters_count
    )
    steps = getattr(torch.optim, optimizer)(
        adapter.parameters(), lr={"SGD": 5e-3, "AdamW": 2e-3}[optimizer]
    )
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(model(x), labels)
        losses.append(loss.item())
        steps.zero_grad()
        loss.backward()
        steps.step()
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.99 * losses[0]
    trained = model(x).detach()
    assert same_bits({k: v for k, v in state(model).items() if k in values}, values)
    read = Adapter.load(adapter.save(tmp_path / "out"))
    assert read == adapter
    other = resnet(resnet_file)
    lorakit.attach(other, read)
    assert torch.equal(other(x), trained)
    lorakit.merge(other)
    lorakit.detach(other)
    assert error(other(x), trained.double()) < 1e-4 * float(trained.abs().max())
    lorakit.detach(model)
    assert torch.equal(model(x), base) and same_bits(state(model), values)


@pytest.mark.shared
def test_preset_takes_every_convolution(resnet_file: Path) -> None:
    model = resnet(resnet_file)
    assert list(lorakit.select(model, "conv")) == CONVS
    assert list(lorakit.select(model, "all-linear")) == ["linear"]
    assert list(lorakit.select(model, "conv", exclude=["conv1"])) == [
        n for n in CONVS if not n.endswith("conv1")
    ]
