"""All laws, functions of a row and a folder: tests check them, and planted faults break them."""

from .structure import (
    base_is_kept,
    copies_are_independent,
    detach_leaves_no_trace,
    disabled_equals_base,
    enable_takes_names,
    fresh_equals_base,
    start_depends_on_seed_and_name_alone,
    starts_of_layers_differ,
    written_equals_read,
)
from .table import within
from .training import (
    a_layer_used_twice_is_adapted_twice,
    biases_train_and_merge,
    first_step_moves_B_alone,
    gradient_equals_differences,
    gradient_takes_the_norm_as_constant,
    only_the_delta_trains,
    padding_stays,
)
from .values import (
    alpha_scales,
    attached_equals_dense,
    dropout_drops_the_delta_alone,
    merge_rounds_once,
    merged_equals_attached,
    moved_with_the_model,
    rank_bounds_the_change,
    rows_equal_alone,
    the_output_has_the_scale,
    two_adapters_add_up,
    unmerge_restores_bits,
)

LAWS = [
    fresh_equals_base,
    base_is_kept,
    only_the_delta_trains,
    attached_equals_dense,
    merged_equals_attached,
    merge_rounds_once,
    unmerge_restores_bits,
    detach_leaves_no_trace,
    written_equals_read,
    disabled_equals_base,
    two_adapters_add_up,
    copies_are_independent,
    dropout_drops_the_delta_alone,
    start_depends_on_seed_and_name_alone,
    starts_of_layers_differ,
    first_step_moves_B_alone,
    alpha_scales,
    the_output_has_the_scale,
    rank_bounds_the_change,
    enable_takes_names,
    a_layer_used_twice_is_adapted_twice,
    moved_with_the_model,
    biases_train_and_merge,
    padding_stays,
    rows_equal_alone,
]
__all__ = [
    "LAWS",
    "gradient_equals_differences",
    "gradient_takes_the_norm_as_constant",
    "within",
]
