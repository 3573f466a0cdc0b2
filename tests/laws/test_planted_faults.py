"""The laws are tested: each of these faults, planted into the source, turns the law named beside it
red.
"""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from lorakit import spec
from lorakit.deltas import lora_autograd as fused
from lorakit.deltas.adalora import AdaLoRA
from lorakit.deltas.base import LowRank
from lorakit.deltas.dora import DoRA
from lorakit.deltas.loha import LoHa
from lorakit.deltas.lokr import LoKr
from lorakit.deltas.offset import OffsetLowRank
from lorakit.deltas.token_rows import TiedTokenRows, TokenRows
from lorakit.deltas.vera import VeRA
from lorakit.formats.peft import packed
from lorakit.inits import classic
from lorakit.inject.mixed_batch import PlaceRouting
from lorakit.sites import slot
from lorakit.sites.base import Site
from lorakit.sites.conv import ConvSite, ConvTransposeSite
from lorakit.sites.experts import ExpertsSite
from lorakit.sites.fused_parts import OutputSliceSite
from lorakit.sites.linear import EmbeddingSite
from lorakit.sites.quantised import BitsAndBytesSite

from ..inject.test_token_rows import rows_equal_dense, rows_merge_as_attached
from ..sites import test_experts, test_quantised
from . import law
from .table import Row

attach = import_module("lorakit.inject.attach")
merging = import_module("lorakit.merging.weights")
Plant = Callable[[pytest.MonkeyPatch], None]


def edit(where: Any, name: str, old: str, new: str) -> Plant:
    """Return what replaces a piece of the source of a function or method; it must be there exactly
    once.
    """

    def plant(patch: pytest.MonkeyPatch) -> None:
        original = getattr(where, name)
        # Unparsed, so that a fault stays planted wherever the formatter breaks a line.
        source = ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(original))))
        assert source.count(old) == 1, f"{old!r} is no longer in {name}: plant the fault anew"
        scope: dict[str, Any] = {}
        inner = inspect.unwrap(original)  # a decorator of torch has torch's globals
        code = compile(source.replace(old, new), inner.__code__.co_filename, "exec")
        exec(code, inner.__globals__, scope)
        patch.setattr(where, name, scope[name])
        for module, content in list(sys.modules.items()):
            imports_it = vars(content).get(name) is original
            if module.partition(".")[0] == "lorakit" and imports_it:
                patch.setattr(content, name, scope[name])

    return plant


def item(where: dict[str, Any], key: str, value: Any) -> Plant:
    return lambda patch: patch.setitem(where, key, value)


def experts_equal_dense(row: Row, folder: Path) -> None:
    family, way = test_experts.FORMS[0]
    test_experts.test_attached_equals_dense(family, way)


def quantised_sums_are_exact(row: Row, folder: Path) -> None:
    test_quantised.test_a_merge_is_the_exact_sum_rounded_once_by_the_packages_own_code(
        "bitsandbytes-nf4", 3.0
    )


def quantised_weights_are_restored(row: Row, folder: Path) -> None:
    test_quantised.test_unmerge_restores_the_stored_bits("bitsandbytes-nf4")


CONVOLVED = "layer._conv_forward(x, kernel, None)"
PADDED = "F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)"
ZEROS = "self.convolve(x, kernel, None, layer.stride, 1, layer.dilation, layer.groups)"
UNDILATED = f"self.convolve({PADDED}, kernel, None, layer.stride, 0, 1, layer.groups)"
SUBTRACT = (
    "base[path].data.sub_(state.adapters['default'].deltas['layer'].matrix().to(tensor.dtype))"
)
FAULTS: dict[str, tuple[Plant, Callable[[Row, Path], None], str]] = {
    "scale dropped": (
        edit(fused, "_add_product", "(B * factor)", "B"),
        law.attached_equals_dense,
        "linear-float64",
    ),
    "scale squared": (
        edit(fused, "_add_product", "(B * factor)", "(B * factor**2)"),
        law.attached_equals_dense,
        "conv1d-float32",
    ),
    "scale rule inverted": (
        item(spec.SCALES, "alpha/sqrt(rank)", lambda alpha, rank: alpha * rank**0.5),
        law.alpha_scales,
        "linear-float64",
    ),
    "sign": (
        edit(LowRank, "forward", "return site", "return -site"),
        law.attached_equals_dense,
        "embedding-float64",
    ),
    "merged transposed": (
        edit(LowRank, "matrix", "multiply_wide(B, A)", "multiply_wide(B, A).T"),
        law.merged_equals_attached,
        "linear-square-float64",
    ),
    "merge drops scale": (
        edit(LowRank, "matrix", "self.scale * ", ""),
        law.merged_equals_attached,
        "linear-bfloat16",
    ),
    "merge drops weight": (
        edit(Site, "add_changes", "weight * change", "change"),
        law.merge_rounds_once,
        "linear-float32",
    ),
    "merge rounds the change first": (
        edit(
            Site,
            "add_changes",
            "+ weight * change",
            "+ (weight * change).to(self.read(layer).dtype)",
        ),
        law.merge_rounds_once,
        "linear-bfloat16",
    ),
    "merge sums in the weight's dtype": (
        edit(
            Site,
            "add_changes",
            "total.to(dtype) + weight * change",
            "total + weight * change.to(total.dtype)",
        ),
        law.merge_rounds_once,
        "conv1d-float16",
    ),
    "merge drops biases": (
        edit(merging, "_new_values", "full[path].detach().to(weight)", "weight.detach()"),
        law.biases_train_and_merge,
        "linear-float64",
    ),
    "merge leaves the change on": (
        edit(merging, "merge", "set_enabled(model, state, {})", "pass"),
        law.merged_equals_attached,
        "embedding-float32",
    ),
    "unmerge by subtraction": (
        edit(merging, "unmerge", "_set_values(base[path], tensor)", SUBTRACT),
        law.unmerge_restores_bits,
        "linear-bfloat16",
    ),
    "unmerge switches nothing on": (
        edit(merging, "unmerge", "set_enabled(model, state, undo.enabled)", "pass"),
        law.unmerge_restores_bits,
        "linear-float64",
    ),
    "base not frozen": (
        edit(attach, "_freeze_base", "parameter.requires_grad_(False)", "pass"),
        law.only_the_delta_trains,
        "linear-float64",
    ),
    "A gets no gradient": (
        edit(fused.AddLowRank, "backward", "(grad_projected.T @ dropped).to(A.dtype)", "None"),
        law.only_the_delta_trains,
        "linear-float32",
    ),
    "B is cut off the graph": (
        edit(
            fused.AddLowRank,
            "backward",
            "((dropped @ cast_A.T).T @ grad_rows).T.to(B.dtype) * ctx.factor",
            "None",
        ),
        law.only_the_delta_trains,
        "conv1d-float64",
    ),
    "hook left behind": (
        edit(slot, "remove_slot", "del layer._forward_hooks[key]", "pass"),
        law.detach_leaves_no_trace,
        "linear-float64",
    ),
    "all hooks removed": (
        edit(
            slot,
            "remove_slot",
            "in hooks:\n        if hook in HOOKS:",
            "in hooks:\n        if True:",
        ),
        law.detach_leaves_no_trace,
        "conv1d-float64",
    ),
    "requires_grad not put back": (
        edit(
            attach,
            "_unfreeze_base",
            "state.required_grad.get(path, parameter.requires_grad)",
            "False",
        ),
        law.detach_leaves_no_trace,
        "linear-float64",
    ),
    "A from the global random state": (
        edit(
            classic,
            "initial_A",
            "rand(size, generator=generator)",
            "rand(size)",
        ),
        law.start_depends_on_seed_and_name_alone,
        "linear-float64",
    ),
    "A the same for every name": (
        edit(classic, "generator_for", "{seed}:{name}", "{seed}"),
        law.starts_of_layers_differ,
        "linear-float64",
    ),
    "seed ignored": (
        edit(classic, "generator_for", "{seed}:{name}", "{name}"),
        law.start_depends_on_seed_and_name_alone,
        "linear-float64",
    ),
    "B not zero": (
        edit(LowRank, "start", "new_zeros(", "new_ones("),
        law.fresh_equals_base,
        "linear-float16",
    ),
    "output left in the adapter's dtype": (
        edit(
            LowRank, "forward", "projected * self.scale, y)", "projected * self.scale, y).float()"
        ),
        law.fresh_equals_base,
        "embedding-bfloat16",
    ),
    "dropout while evaluating": (
        edit(LowRank, "add_change", "if self.training else 0.0", ""),
        law.dropout_drops_the_delta_alone,
        "linear-float64",
    ),
    "dropout on the base's output": (
        edit(LowRank, "add_change", "add_low_rank(out, x", "add_low_rank(out * 0.5, x"),
        law.dropout_drops_the_delta_alone,
        "linear-float64",
    ),
    "enable(None) leaves it on": (
        edit(slot, "set_enabled", "state.enabled = dict(enabled)", "pass"),
        law.disabled_equals_base,
        "linear-float64",
    ),
    "weight ignored": (
        edit(LowRank, "add_change", "self.scale * weight", "self.scale"),
        law.two_adapters_add_up,
        "linear-float64",
    ),
    "biases not exchanged": (
        edit(slot, "_register_parameter", "wanted != registered", "False"),
        law.biases_train_and_merge,
        "linear-float64",
    ),
    "another row of an embedding": (
        edit(EmbeddingSite, "project", "F.embedding(x, A.T,", "F.embedding(19 - x, A.T,"),
        law.attached_equals_dense,
        "embedding-float64",
    ),
    "padding row starts like any other": (
        edit(EmbeddingSite, "mask_padding", "return A * keep", "return A"),
        law.padding_stays,
        "embedding-padded-float32",
    ),
    "padding row learns": (
        edit(EmbeddingSite, "project", ", padding_idx=layer.padding_idx", ""),
        law.padding_stays,
        "embedding-padded-float64",
    ),
    "padding mode ignored": (
        edit(ConvSite, "project", CONVOLVED, ZEROS),
        law.attached_equals_dense,
        "convolution2d-circular-float64",
    ),
    "dilation ignored": (
        edit(ConvSite, "project", CONVOLVED, UNDILATED),
        law.attached_equals_dense,
        "convolution2d-circular-float32",
    ),
    "groups in the wrong order": (
        edit(
            ConvSite,
            "project",
            "kernel.repeat(layer.groups, 1, *self.ones)",
            "kernel.repeat_interleave(layer.groups, dim=0)",
        ),
        law.attached_equals_dense,
        "convolution2d-depthwise-float64",
    ),
    "kernel's axes exchanged": (
        edit(
            ConvSite,
            "project",
            "A.view(rank, *patch)",
            "A.view(A.shape[0], layer.weight.shape[1], *layer.kernel_size[::-1]).mT",
        ),
        law.attached_equals_dense,
        "convolution2d-depthwise-bfloat16",
    ),
    "kernel merged the other way round": (
        edit(ConvSite, "to_weight", "(layer.weight.shape)", "(layer.weight.shape).flip(-1)"),
        law.merged_equals_attached,
        "convolution2d-circular-float64",
    ),
    "channels of a transposed convolution's groups mixed": (
        edit(ConvTransposeSite, "project", ".transpose(0, 1)", ""),
        law.attached_equals_dense,
        "transposed2d-float64",
    ),
    "transposed convolution spreads a mirrored kernel": (
        edit(
            ConvTransposeSite,
            "expand",
            "B.T.reshape(rank, *patch)",
            "B.T.reshape(rank, *patch).flip(-1)",
        ),
        law.attached_equals_dense,
        "transposed2d-float16",
    ),
    "rows get the ranks of others": (
        edit(PlaceRouting, "multiply_stacked", "projected.masked_fill(masked, 0.0)", "projected"),
        law.rows_equal_alone,
        "linear-float64",
    ),
    "a row's weights dropped": (
        edit(
            PlaceRouting, "multiply_stacked", "projected * weight.to(projected.dtype)", "projected"
        ),
        law.rows_equal_alone,
        "conv1d-bfloat16",
    ),
    "a group's weights dropped": (
        edit(PlaceRouting, "_group_factors", "scaled_B[name] * weight", "scaled_B[name]"),
        law.rows_equal_alone,
        "linear-float64",
    ),
    "sorted rows not put back": (
        edit(
            PlaceRouting,
            "multiply_grouped",
            "zeros.index_copy(0, self.table.order_n, sorted_change)",
            "sorted_change",
        ),
        law.rows_equal_alone,
        "linear-square-float32",
    ),
    "rows of an adapter mixed up": (
        edit(
            PlaceRouting,
            "add_one_by_one",
            "x.index_select(0, index)",
            "x.index_select(0, index.flip(0))",
        ),
        law.rows_equal_alone,
        "convolution2d-depthwise-float64",
    ),
    "joined factors are cut off the graph": (
        edit(PlaceRouting, "_stack_factors", "[delta.A for", "[delta.A.detach() for"),
        law.rows_equal_alone,
        "embedding-float64",
    ),
    "part among the rows of its neighbour": (
        edit(
            OutputSliceSite,
            "scatter_outputs",
            "(self.start, self.after)",
            "(self.start + 1, self.after - 1)",
        ),
        law.attached_equals_dense,
        "part-contiguous-float64",
    ),
    "parts of groups one after the other": (
        edit(
            OutputSliceSite,
            "scatter_outputs",
            "values.unflatten(-1, (self.groups, self.size))",
            "values.unflatten(-1, (self.size, self.groups)).mT",
        ),
        law.attached_equals_dense,
        "part-interleaved-float64",
    ),
    "part merged into other rows": (
        edit(
            OutputSliceSite,
            "widen",
            "(0, 0, self.start, self.after)",
            "(0, 0, self.after, self.start)",
        ),
        law.merged_equals_attached,
        "part-contiguous-bfloat16",
    ),
    "parts in a file keep no order of groups": (
        edit(
            packed,
            "_select_outputs",
            "B.unflatten(0, (groups, block))",
            "B.unflatten(0, (block, groups)).transpose(0, 1)",
        ),
        law.written_equals_read,
        "part-interleaved-float32",
    ),
    "swapped in and not out": (
        edit(slot.Slot, "swap_out", "site.full_site).swap_out(layer)", "site.full_site)"),
        law.detach_leaves_no_trace,
        "swapped-float64",
    ),
    "swapped in without a gradient of A": (
        edit(LowRank, "matrix", "multiply_wide(B, A)", "multiply_wide(B, A.detach())"),
        law.only_the_delta_trains,
        "swapped-float32",
    ),
    "swapped in without the adapter's weight": (
        edit(Site, "add_changes", "weight * change", "change"),
        law.two_adapters_add_up,
        "swapped-float64",
    ),
    "start of B not taken off": (
        edit(OffsetLowRank, "factors", "self.B - self.B0", "self.B"),
        law.fresh_equals_base,
        "offset:linear-float64",
    ),
    "start of A not taken off": (
        edit(OffsetLowRank, "factors", "self.A - self.A0", "self.A"),
        law.fresh_equals_base,
        "offset:embedding-bfloat16",
    ),
    "merge forgets the start": (
        edit(OffsetLowRank, "matrix", "self.factors()", "(self.A, self.B)"),
        law.merged_equals_attached,
        "offset:convolution3d-float64",
    ),
    "start written with the wrong sign": (
        edit(OffsetLowRank, "to_low_rank", "-self.B0", "self.B0"),
        law.written_equals_read,
        "offset:conv1d-float32",
    ),
    "row of the next token": (
        edit(
            TokenRows,
            "matrix",
            "index_copy(0, self.tokens,",
            "index_copy(0, (self.tokens + 1) % 40,",
        ),
        lambda row, folder: rows_merge_as_attached(),
        "linear-float64",
    ),
    "row is that of the next token": (
        edit(TokenRows, "forward", "== self.tokens", "== (self.tokens + 1) % 40"),
        lambda row, folder: rows_equal_dense(),
        "linear-float64",
    ),
    "tied head forgotten": (
        edit(
            attach,
            "attach",
            "adapter.tied_deltas = tie_token_rows(model, adapter, places)",
            "adapter.tied_deltas = {}",
        ),
        lambda row, folder: rows_equal_dense(),
        "linear-float64",
    ),
    "rows of the head forgotten": (
        edit(
            TiedTokenRows,
            "add_change",
            "self.source.add_change(site, layer, x, y, out, weight, in_place=in_place)",
            "out",
        ),
        lambda row, folder: rows_equal_dense(),
        "linear-float64",
    ),
    "new rows are added to the old": (
        edit(TokenRows, "difference", "self.new.to(wide) - rows.to(wide)", "self.new.to(wide)"),
        lambda row, folder: rows_equal_dense(),
        "linear-float64",
    ),
    "DoRA's norm without a term": (
        edit(DoRA, "norm", "2 * self.scale * mixed", "self.scale * mixed"),
        law.attached_equals_dense,
        "dora:linear-float64",
    ),
    "VeRA without d": (
        edit(VeRA, "forward", " * self.d.to(y.dtype)", ""),
        law.attached_equals_dense,
        "vera:linear-float64",
    ),
    "LoHa adds its products": (
        edit(LoHa, "matrix", "w1 * w2", "w1 + w2"),
        law.attached_equals_dense,
        "loha:linear-float64",
    ),
    "LoKr the other way round": (
        edit(
            LoKr,
            "matrix",
            "w1[:, None, :, None] * w2[None, :, None, :]",
            "w1[None, :, None, :] * w2[:, None, :, None]",
        ),
        law.attached_equals_dense,
        "lokr:linear-float64",
    ),
    "AdaLoRA merges without E": (
        edit(AdaLoRA, "matrix", "self.E.to(wide) * self.A", "self.A"),
        law.merged_equals_attached,
        "adalora:linear-float64",
    ),
    "experts without their scale": (
        edit(ExpertsSite, "swap_in", "weight * delta.scale", "weight"),
        experts_equal_dense,
        "linear-float64",
    ),
    "sum quantised in another form": (
        edit(BitsAndBytesSite, "requantise", "quant_type=state.quant_type", "quant_type='fp4'"),
        quantised_sums_are_exact,
        "linear-float64",
    ),
    "quantised weights not put back": (
        edit(merging, "unmerge", "{**undo.untied, **undo.quantised}", "undo.untied"),
        quantised_weights_are_restored,
        "linear-float64",
    ),
    "start of A is a view of A": (
        edit(OffsetLowRank, "factors", "[self.A, self.A - self.A0]", "[self.A, self.A - self.A]"),
        law.attached_equals_dense,
        "offset:transposed2d-float64",
    ),
}


@pytest.mark.slow
@pytest.mark.usefixtures("added_sites")
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plant, caught_by, where = FAULTS[fault]
    (delta, _, layer), (_, _, precision) = where.rpartition(":"), where.rpartition("-")
    row = Row(delta or "lowrank", layer.removesuffix(f"-{precision}"), precision)
    caught_by(row, tmp_path / "sound")
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        caught_by(row, tmp_path / "faulty")
