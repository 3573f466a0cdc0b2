"""The PEFT types that are read and written: the keys of their configs and their tensors.

Source: huggingface/peft 0.21, `tuners/{lora,vera,loha,lokr,adalora}`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lorakit.formats.checked_json import (
    Check,
    is_either,
    is_list_of,
    is_object,
    is_object_of,
    is_size,
    is_text,
    is_truth_value,
)
from lorakit.spec import is_number, is_whole

PREFIX = "base_model.model."  # of every key but those of VeRA's shared factors
TYING = "ensure_weight_tying"
SHARED_FACTORS = {"base_model.vera_A": "A", "base_model.vera_B": "B"}


@dataclass(frozen=True)
class JsonKind:
    """The values that a config key may have.

    Attributes:
        name: with its article, as in "a whole number".
        check: returns True for such a value.
    """

    name: str
    check: Check


WHOLE = JsonKind("a whole number", is_whole)
NUMBER = JsonKind("a finite number", is_number)
TRUTH_VALUE = JsonKind("true or false", is_truth_value)
TEXT = JsonKind("a string", is_text)
NAMES = JsonKind("a list of names", is_list_of(is_text))
PATTERNS = JsonKind("a string or a list of strings", is_either(is_text, NAMES.check))
OBJECT = JsonKind("an object", is_object)
TOKEN_IDS = JsonKind(
    "a list of ids, or an object of such lists",
    is_either(is_list_of(is_size), is_object_of(is_list_of(is_size))),
)
SETTING_KINDS = {
    "rank": WHOLE,
    "alpha": NUMBER,
    "ranks": JsonKind("an object of whole numbers", is_object_of(is_whole)),
    "alphas": JsonKind("an object of finite numbers", is_object_of(is_number)),
    "rslora": TRUTH_VALUE,
    "dropout": NUMBER,
    "bias": TEXT,
    "fan": TRUTH_VALUE,
}
COMMON_KINDS = {
    "target_modules": PATTERNS,
    "exclude_modules": PATTERNS,
    "modules_to_save": NAMES,
    "base_model_name_or_path": TEXT,
    "task_type": TEXT,
    "peft_version": TEXT,
}
# Keys that are read, and do not change what the tensors mean.
FACT_KEYS = frozenset({"base_model_name_or_path", "task_type", "peft_version"})
# Keys that other programs add, none of which changes what the tensors mean.
HARMLESS_KEYS = frozenset(
    {
        "_from_model_config",
        "base_model_class",
        "created_at",
        "library_name",
        "lora_dtype",
        "merge_weights",
        "model_type",
        "parent_library",
        "task",
        "torch_dtype",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
    }
)
COMMON_IGNORED_KEYS = frozenset(
    {
        "peft_type",
        "auto_mapping",
        "inference_mode",
        "revision",
        "runtime_config",
        "layers_pattern",
        "layers_to_transform",
    }
)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One peft_type.

    Attributes:
        delta: the name in `Spec.delta`.
        peft_type: the name in the config.
        setting_keys: config keys of rank, alpha, ranks, alphas, rslora, dropout, bias and fan
            (fan_in_fan_out); a setting without a key does not exist for this type.
        own_kinds: the values of the other keys that are read.
        ignored_keys: keys that do not change the meaning of the tensors.
        refused_keys: keys that are accepted only with a value that turns them off.
        constants: keys that are always written with the same value.
        key_endings: endings of tensor keys by parameter; empty for LoRA, whose keys depend on the
            layer.
        parameter_axes: one letter for each axis of a parameter. Axes with the same letter have the
            same size; "r" is the rank, "o" out, "i" in; the axis "1" has size 1.
        parameter_sets: the sets of parameters that make up a delta; a module has one of them.
        default_rank: the rank where the config has none.
        adapted_biases: the config's word for `Spec.bias` "adapted"; empty if there is none.
    """

    delta: str
    peft_type: str
    setting_keys: Mapping[str, str]
    own_kinds: Mapping[str, JsonKind] = field(default_factory=dict[str, JsonKind])
    ignored_keys: frozenset[str] = frozenset()
    refused_keys: frozenset[str] = frozenset()
    constants: Mapping[str, object] = field(default_factory=dict[str, object])
    key_endings: Mapping[str, str] = field(default_factory=dict[str, str])
    parameter_axes: Mapping[str, str] = field(default_factory=dict[str, str])
    parameter_sets: tuple[frozenset[str], ...] = ()
    default_rank: int = 8
    adapted_biases: str = "lora_only"

    @property
    def is_lora(self) -> bool:
        """True for LoRA and DoRA, whose layers have keys of their own."""
        return not self.key_endings

    @property
    def key_kinds(self) -> dict[str, JsonKind]:
        """The values that all keys that are read may have."""
        kinds = {key: SETTING_KINDS[setting] for setting, key in self.setting_keys.items()}
        return {**kinds, **COMMON_KINDS, **self.own_kinds}

    @property
    def known_keys(self) -> set[str]:
        """All config keys that are read, ignored or refused."""
        ignored = self.ignored_keys | COMMON_IGNORED_KEYS | HARMLESS_KEYS
        return {*self.key_kinds, *ignored, *self.refused_keys}

    @property
    def meaningful_keys(self) -> set[str]:
        """The config keys that change what the tensors mean."""
        return {*self.key_kinds, *self.refused_keys} - FACT_KEYS

    @property
    def bias_words(self) -> dict[str, str]:
        """The config's words for the values of `Spec.bias`; an empty one if there is none."""
        return {"none": "none", "adapted": self.adapted_biases, "all": "all"}


LORA_IGNORED_KEYS = frozenset({"megatron_core", "qalora_group_size", "eva_config"})
# These change the meaning of the tensors in a way that a lorakit delta cannot hold.
LORA_REFUSED_KEYS = frozenset(
    {
        "alora_invocation_tokens",
        "arrow_config",
        "corda_config",
        "kasa_config",
        "layer_replication",
        "lora_ga_config",
        "megatron_config",
        "monteclora_config",
        "use_bdlora",
        "loftq_config",
        "velora_config",
        "lora_bias",
        "use_qalora",
    }
)
LORA = Method(
    delta="lora",
    peft_type="LORA",
    setting_keys={
        "rank": "r",
        "alpha": "lora_alpha",
        "ranks": "rank_pattern",
        "alphas": "alpha_pattern",
        "rslora": "use_rslora",
        "dropout": "lora_dropout",
        "bias": "bias",
        "fan": "fan_in_fan_out",
    },
    own_kinds={
        "use_dora": TRUTH_VALUE,
        "init_lora_weights": JsonKind(
            "true, false or a string", is_either(is_truth_value, is_text)
        ),
        "target_parameters": NAMES,
        "trainable_token_indices": TOKEN_IDS,
        TYING: TRUTH_VALUE,
    },
    ignored_keys=LORA_IGNORED_KEYS,
    refused_keys=LORA_REFUSED_KEYS,
)

VERA = Method(
    delta="vera",
    peft_type="VERA",
    setting_keys={
        "rank": "r",
        "dropout": "vera_dropout",
        "bias": "bias",
        "fan": "fan_in_fan_out",
    },
    own_kinds={"save_projection": TRUTH_VALUE},
    ignored_keys=frozenset({"projection_prng_key", "d_initial", "init_weights"}),
    constants={"save_projection": True},
    key_endings={"b": ".vera_lambda_b", "d": ".vera_lambda_d"},
    parameter_axes={"b": "o", "d": "r"},
    parameter_sets=(frozenset({"b", "d"}),),
    default_rank=256,
    adapted_biases="vera_only",
)

LYCORIS_SETTING_KEYS = {
    "rank": "r",
    "alpha": "alpha",
    "ranks": "rank_pattern",
    "alphas": "alpha_pattern",
}
LYCORIS_IGNORED_KEYS = frozenset({"rank_dropout", "module_dropout", "init_weights"})
LYCORIS_REFUSED_KEYS = frozenset({"use_effective_conv2d"})
LOHA = Method(
    delta="loha",
    peft_type="LOHA",
    setting_keys=LYCORIS_SETTING_KEYS,
    ignored_keys=LYCORIS_IGNORED_KEYS,
    refused_keys=LYCORIS_REFUSED_KEYS,
    key_endings={
        "w1_a": ".hada_w1_a",
        "w1_b": ".hada_w1_b",
        "w2_a": ".hada_w2_a",
        "w2_b": ".hada_w2_b",
    },
    parameter_axes={"w1_a": "or", "w1_b": "ri", "w2_a": "or", "w2_b": "ri"},
    parameter_sets=(frozenset({"w1_a", "w1_b", "w2_a", "w2_b"}),),
    adapted_biases="",
)
LOKR = Method(
    delta="lokr",
    peft_type="LOKR",
    setting_keys=LYCORIS_SETTING_KEYS,
    ignored_keys=LYCORIS_IGNORED_KEYS
    | {"rank_dropout_scale", "decompose_both", "decompose_factor"},
    refused_keys=LYCORIS_REFUSED_KEYS,
    key_endings={
        "w1_a": ".lokr_w1_a",
        "w1_b": ".lokr_w1_b",
        "w2_a": ".lokr_w2_a",
        "w2_b": ".lokr_w2_b",
        "w1": ".lokr_w1",
        "w2": ".lokr_w2",
    },
    # w1 is (l, m) and w2 is (k, n), with l k = out and m n = in.
    parameter_axes={
        "w1": "lm",
        "w1_a": "lr",
        "w1_b": "rm",
        "w2": "kn",
        "w2_a": "kr",
        "w2_b": "rn",
    },
    parameter_sets=(
        frozenset({"w1", "w2"}),
        frozenset({"w1", "w2_a", "w2_b"}),
        frozenset({"w1_a", "w1_b", "w2"}),
        frozenset({"w1_a", "w1_b", "w2_a", "w2_b"}),
    ),
    adapted_biases="",
)

ADALORA = Method(
    delta="adalora",
    peft_type="ADALORA",
    setting_keys={
        "rank": "init_r",
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
        "bias": "bias",
        "fan": "fan_in_fan_out",
    },
    own_kinds={"rank_pattern": OBJECT},
    ignored_keys=LORA_IGNORED_KEYS
    | {
        "r",
        "target_r",
        "tinit",
        "tfinal",
        "deltaT",
        "beta1",
        "beta2",
        "orth_reg_weight",
        "total_step",
        "use_rslora",
        "alpha_pattern",
        "init_lora_weights",
    },
    refused_keys=LORA_REFUSED_KEYS
    | {TYING, "use_dora", "target_parameters", "trainable_token_indices"},
    constants={"r": 8, "total_step": 1},
    key_endings={"A": ".lora_A", "B": ".lora_B", "E": ".lora_E"},
    parameter_axes={"A": "ri", "B": "or", "E": "r1"},
    parameter_sets=(frozenset({"A", "B", "E"}),),
    default_rank=12,
)

METHODS_BY_TYPE = {method.peft_type: method for method in (LORA, VERA, LOHA, LOKR, ADALORA)}
METHODS_BY_DELTA = {method.delta: method for method in METHODS_BY_TYPE.values()}
METHODS_BY_DELTA["dora"] = LORA
