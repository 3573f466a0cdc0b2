"""Text for people: plurals, near misses, bytes, durations, dtypes, and messages on stderr."""

import os
import sys
import textwrap
from collections.abc import Generator, Iterable
from contextlib import contextmanager, redirect_stderr
from difflib import get_close_matches
from io import StringIO
from typing import Any, TextIO

ESCAPE = "\x1b"  # begins a change of colour
# How torch begins to refuse a pickle, before it advises to run the code in it.
WEIGHTS_ONLY = "Weights only load failed"
# Names of settings in PEFT, TRL, transformers, LLaMA-Factory and others, by ours.
SYNONYMS = {
    "rank": "r lora_r lora_rank lora_dim network_dim",
    "alpha": "lora_alpha network_alpha",
    "dropout": "lora_dropout",
    "targets": "target_modules lora_target lora_target_modules",
    "exclude": "exclude_modules",
    "full_modules": "modules_to_save additional_target",
    "token_rows": "trainable_token_indices",
    "init": "init_lora_weights pissa_init",
    "bias": "lora_bias",
    "overrides": "rank_pattern alpha_pattern",
    "delta": "peft_type finetuning_type adapter_type method",
    "tie": "ensure_weight_tying",
    "model": "model_name_or_path model_name base_model pretrained_model_name_or_path model_id",
    "adapter": "adapter_name_or_path adapter_path peft_model lora_path lora",
    "data": "dataset datasets dataset_name dataset_path train_file train_dataset data_path",
    "eval_data": "eval_dataset validation_file val_data",
    "eval_fraction": "val_size val_set_size test_size validation_split",
    "output": "output_dir save_dir out_dir output_path output_folder",
    "columns": "dataset_text_field text_column label_column",
    "loss_on": "completion_only_loss assistant_only_loss train_on_inputs",
    "max_length": "max_seq_length max_seq_len cutoff_len model_max_length sequence_len block_size",
    "epochs": "num_train_epochs num_epochs",
    "steps": "max_steps max_train_steps num_steps iters",
    "batch_size": "per_device_train_batch_size train_batch_size micro_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "packing": "sample_packing neat_packing",
    "accumulate": "gradient_accumulation_steps gradient_accumulation grad_accumulation_steps",
    "lr": "learning_rate",
    "schedule": "lr_scheduler_type lr_scheduler scheduler",
    "warmup": "warmup_ratio warmup_steps lr_warmup_steps",
    "cycles": "num_cycles lr_scheduler_num_cycles",
    "optimizer": "optim optimizer_type optimizer_name",
    "lr_ratio": "loraplus_lr_ratio loraplus_ratio lora_plus_ratio",
    "weight_decay": "wd",
    "label_smoothing": "label_smooth label_smoothing_factor",
    "r_drop": "reg_loss_wgt rdrop r_drop_weight",
    "cutoff": "masking_prob token_cutoff cutoff_ratio",
    "clip": "max_grad_norm gradient_clipping grad_clip",
    "base_dtype": "torch_dtype model_dtype",
    "mixed_precision": "precision",
    "gradient_checkpointing": "activation_checkpointing use_gradient_checkpointing",
    "eval_every": "eval_steps steps_per_eval evaluation_steps",
    "checkpoint_every": "save_steps steps_per_checkpoint save_every",
    "keep": "save_total_limit",
    "patience": "early_stopping_patience",
    "seed": "random_state random_seed data_seed",
    "device": "device_map",
    "threads": "num_threads",
    "resume": "resume_from_checkpoint",
    "overwrite": "overwrite_output_dir",
    "target_rank": "target_r",
    "budget_warmup": "tinit",
    "budget_final": "tfinal",
    "budget_every": "deltat",
    "orthogonality": "orth_reg_weight",
    "max_new_tokens": "max_tokens max_completion_tokens",
    "beams": "num_beams",
    "no_repeat_ngram": "no_repeat_ngram_size",
}
# Switches of the same that are values of a setting here.
SWITCHES = {
    "use_dora": ("delta", "dora"),
    "use_rslora": ("scale_rule", "alpha/sqrt(rank)"),
    "bf16": ("mixed_precision", "bf16"),
    "fp16": ("mixed_precision", "fp16"),
    "train_on_prompt": ("loss_on", "all"),
    "load_best_model_at_end": ("final", "best"),
}


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, which takes an s unless the count is 1.

    >>> plural(1, "layer"), plural(1200, "row")
    ('1 layer', '1,200 rows')
    """
    ending = "" if count == 1 else "s"
    return f"{count:,} {noun}{ending}"


def nearest(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return the most similar known words, the best first; empty if none is similar.

    >>> nearest("k_porj", ["q_proj", "k_proj"], count=1)
    ['k_proj']
    """
    return get_close_matches(word, sorted(set(known)), n=count, cutoff=0.6)


def near_misses(word: str, known: Iterable[str], count: int = 3) -> str:
    """Return `did you mean …?` with the most similar known words, or an empty string.

    >>> near_misses("k_porj", ["q_proj", "k_proj"], count=1)
    "did you mean 'k_proj'?"
    """
    return did_you_mean(nearest(word, known, count))


def similar_settings(word: str, known: Iterable[str]) -> list[tuple[str, str]]:
    """Return the settings that a word may stand for, each with its value, empty if it is open.

    Args:
        word: a name, as a user or another library writes it.
        known: the names of the settings.

    >>> similar_settings("lora_r", ["rank", "lr"]), similar_settings("use-dora", ["delta"])
    ([('rank', '')], [('delta', 'dora')])
    """
    names, word = set(known), word.lower().replace("-", "_")
    if word in SWITCHES and SWITCHES[word][0] in names:
        return [SWITCHES[word]]
    for name, others in SYNONYMS.items():
        if name in names and word in others.split():
            return [(name, "")]
    return [(name, "") for name in nearest(word, names)]


def did_you_mean(words: Iterable[str]) -> str:
    """Return `did you mean …?` with these words, or an empty string if there are none.

    >>> did_you_mean(["k_proj", "q_proj"])
    "did you mean 'k_proj' or 'q_proj'?"
    """
    names = " or ".join(repr(name) for name in words)
    return f"did you mean {names}?" if names else ""


def add_hint(text: str, hint: str) -> str:
    """Return a text with a hint, if there is one: a new sentence, or behind a semicolon.

    >>> add_hint("'lor' is none of lora, dora", "did you mean 'lora'?")
    "'lor' is none of lora, dora; did you mean 'lora'?"
    >>> add_hint("There is no 'lor'.", "did you mean 'lora'?")
    "There is no 'lor'. Did you mean 'lora'?"
    """
    if not hint:
        return text
    if text and not text.endswith("."):
        return f"{text}; {hint}"
    return f"{text} {hint[0].upper()}{hint[1:]}".lstrip()


def format_bytes(count: float) -> str:
    """Return a number of bytes with its unit.

    >>> format_bytes(1572864), format_bytes(3 << 40)
    ('1.5 MiB', '3,072.0 GiB')
    """
    if count < 1024:
        return f"{count} B"
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:,.1f} GiB"


def format_duration(seconds: float) -> str:
    """Return a duration with its unit.

    >>> format_duration(0.25), format_duration(90), format_duration(600), format_duration(36000)
    ('250 ms', '90.0 s', '10 min', '10.0 h')
    """
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"


def dtype_name(dtype: object) -> str:
    """Return the name of a torch dtype as specs and files write it.

    >>> import torch
    >>> dtype_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def line_width(stream: Any) -> int | None:  # noqa: ANN401  a TextIO, or what stands in for one
    """Return the columns that a line of this stream may have, or None where nothing limits them.

    They are those that the stream itself gives, of the variable COLUMNS, or of the terminal.
    """
    columns = str(getattr(stream, "columns", os.environ.get("COLUMNS", "")))
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    try:
        # A terminal that does not know its size says 0.
        return os.get_terminal_size(stream.fileno()).columns or None if stream.isatty() else None
    except (OSError, ValueError, AttributeError):
        return None


def wrap_lines(text: str, width: int | None) -> str:
    """Return a text whose lines are broken between words where they exceed the width.

    A word that is longer than the width stays whole, and so does a line with colours. What goes on
    is indented by two more spaces.

    >>> print(wrap_lines("  q_proj   linear 64 -> 64", 16))
      q_proj
        linear 64 ->
        64
    """
    if width is None:
        return text
    lines: list[str] = []
    for line in text.split("\n"):
        is_too_long = len(line) > width and ESCAPE not in line
        lines.append(_wrap_line(line, width) if is_too_long else line)
    return "\n".join(lines)


def _wrap_line(line: str, width: int) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    # A command stays one for the shell.
    end = " \\" if line.startswith("  lorakit ") else ""
    wrapped = textwrap.wrap(
        line,
        width - len(end),
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{end}\n".join(wrapped)


def print_message(text: str) -> None:
    """Print a text on stderr, with lines that fit."""
    print(wrap_lines(text, line_width(sys.stderr)), file=sys.stderr)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that is not blank, or the name of its class.

    >>> first_line(ValueError("\\n  no such model\\nTraceback ..."))
    'no such model'
    """
    for line in str(error).splitlines():
        if line.startswith(WEIGHTS_ONLY):
            return "it is no pickle, or holds other objects than tensors"
        if line.strip():
            return line.strip()
    return type(error).__name__


class LastingStream:
    """A text stream whose reader may go away: what is written after that is dropped.

    Args:
        stream: the stream to write to; None drops everything, as for a closed stderr.
    """

    def __init__(self, stream: TextIO | None):
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text, and return its length."""
        if self.stream is not None:
            try:
                self.stream.write(text)
            except (OSError, ValueError):
                self.stream = None
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        if self.stream is not None:
            try:
                self.stream.flush()
            except (OSError, ValueError):
                self.stream = None

    def isatty(self) -> bool:
        """Return True for a terminal."""
        return self.stream is not None and self.stream.isatty()

    def close(self) -> None:
        """Write what is buffered; the stream below belongs to the process, and stays open."""
        self.flush()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  as the stream has it
        return getattr(self.stream or StringIO(), name)


@contextmanager
def lasting_stderr() -> Generator[None]:
    """Keep the block alive when nobody reads stderr any more.

    A pipe to `head`, a closed terminal or a full disk under a log must not end a long run.
    """
    with redirect_stderr(LastingStream(sys.stderr)):
        yield
