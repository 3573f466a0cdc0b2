"""Operations on fake tensors, repeated from memory: PyTorch answers each kind of call once.

The blocks of a model run the same operations on tensors of the same shapes. PyTorch takes a
fraction of a millisecond to find the shape of a result, most of the time of a trace.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")
DEVICE = torch.ops.prim.device.default
# Views that begin at a place in the storage, not at one from their argument on.
BY_OFFSET = (torch.ops.aten.as_strided.default, torch.ops.aten.as_strided_scatter.default)


@dataclass(frozen=True)
class Output:
    """One tensor that an operation returns.

    Attributes:
        source: index of the argument whose storage it has, or None if it has its own.
        is_source: True if it is that argument itself, as for an operation in place.
        dtype: of its values.
        shape: of the tensor.
        stride: of the tensor.
        offset: place of its first value in the storage, from that of the source on.
    """

    source: int | None
    is_source: bool
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Answer:
    """All that an operation returns: one tensor, or several in a list or tuple.

    Attributes:
        outputs: the tensors.
        container: list or tuple; None if the result is the one tensor itself.
    """

    outputs: Sequence[Output]
    container: type | None


class ShapeCache(TorchDispatchMode):
    """A mode in which tensors have no values, as in FakeTensorMode, and calls that repeat are fast.

    Args:
        fake: the mode that answers what is not known yet.
    """

    def __init__(self, fake: FakeTensorMode):
        super().__init__()
        self.fake = fake
        self.answers: dict[object, Answer] = {}

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        # Two of three calls ask for the device.
        if func is DEVICE:
            return args[0].fake_device  # type: ignore[attr-defined]
        return self.run(func, args, kwargs or {})

    def run(
        self, func: torch._ops.OpOverload, args: Sequence[object], keywords: Mapping[str, object]
    ) -> object:
        """Return the result of an operation: of its first call, or one made like it."""
        tensors: list[Tensor] = []
        arguments = (*args, *keywords.items())
        key = (func, _describe(arguments, tensors))
        is_plain = all(_is_plain(tensor) for tensor in tensors)
        if is_plain and key in self.answers:
            return self._repeat(self.answers[key], tensors)
        with self.fake:
            result = func(*args, **keywords)
        if is_plain:
            answer = _record(func, tensors, result)
            if answer is not None:
                self.answers[key] = answer
        return result

    def _repeat(self, answer: Answer, tensors: Sequence[Tensor]) -> object:
        outputs = [self._make(output, tensors) for output in answer.outputs]
        return outputs[0] if answer.container is None else answer.container(outputs)

    def _make(self, output: Output, tensors: Sequence[Tensor]) -> Tensor:
        if output.source is None:
            return FakeTensor(self.fake, _blank(output), CPU)
        source = tensors[output.source]
        if output.is_source:
            return source
        view = torch.empty(0, dtype=output.dtype, device="meta")
        offset = source.storage_offset() + output.offset
        view.set_(source.untyped_storage(), offset, output.shape, output.stride)
        return FakeTensor(self.fake, view, CPU)


def _describe(values: Iterable[object], tensors: list[Tensor]) -> tuple[object, ...]:
    """Return all that a result depends on, and add the tensors among the values to a list."""
    found: list[object] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
            if _is_plain(value):
                found += (value.dtype, value.shape, value.stride())
        elif isinstance(value, list | tuple):
            found.append(_describe(value, tensors))
        else:
            # 1, 1.0 and True are equal, but their results differ.
            found += (type(value), value)
    return tuple(found)


def _is_plain(tensor: Tensor) -> bool:
    """Return True if results depend on no more of a tensor than its dtype and its layout."""
    if not isinstance(tensor, FakeTensor) or tensor.constant is not None:
        return False
    return tensor.layout is torch.strided and not tensor.dtype.is_complex


def _record(
    func: torch._ops.OpOverload, tensors: Sequence[Tensor], result: object
) -> Answer | None:
    """Return the answer of which a result is an example; None if it cannot be made again."""
    writes_to_argument = any(argument.is_out for argument in func._schema.arguments)
    if writes_to_argument or torch.Tag.inplace_view in func.tags or func in BY_OFFSET:
        return None
    container = type(result) if isinstance(result, list | tuple) else None
    results = list(result) if isinstance(result, list | tuple) else [result]
    outputs: list[Output] = []
    own_storages: list[int] = []
    for one in results:
        if not isinstance(one, Tensor) or not _is_plain(one):
            return None
        storage = one.untyped_storage()
        output = _record_output(one, tensors)
        if output.source is None:
            if storage.nbytes() != _blank(output).untyped_storage().nbytes():
                return None
            own_storages.append(storage._cdata)
        outputs.append(output)
    is_shared = len(set(own_storages)) < len(own_storages)
    return None if is_shared else Answer(outputs, container)


def _record_output(tensor: Tensor, arguments: Sequence[Tensor]) -> Output:
    same = [index for index, argument in enumerate(arguments) if argument is tensor]
    storage = tensor.untyped_storage()._cdata
    sharing = [
        index
        for index, argument in enumerate(arguments)
        if argument.untyped_storage()._cdata == storage
    ]
    source = next(iter(same + sharing), None)
    start = 0 if source is None else arguments[source].storage_offset()
    return Output(
        source=source,
        is_source=bool(same),
        dtype=tensor.dtype,
        shape=tuple(tensor.shape),
        stride=tensor.stride(),
        offset=int(tensor.storage_offset() - start),
    )


def _blank(output: Output) -> Tensor:
    return torch.empty_strided(output.shape, output.stride, dtype=output.dtype, device="meta")
