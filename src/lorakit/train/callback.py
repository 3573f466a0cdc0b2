"""A callback for transformers' Trainer, and for those that are made from it (TRL's, …)."""

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorakit.adapter import Adapter
from lorakit.errors import SpecError

CHECKPOINT = "checkpoint-{step}"


class SaveAdapter(TrainerCallback):
    """A callback that saves the adapter where the Trainer would save the whole model.

    The arguments of the Trainer say when (`save_strategy`, `save_steps`) and how many are kept
    (`save_total_limit`). Each is a folder `checkpoint-N` with the adapter alone, and at the end of
    training the adapter is in `output_dir`. Without the state of the optimizer, the Trainer cannot
    resume from them.

    Args:
        adapter: of `attach`.

    Raises:
        SpecError: as training begins, if the Trainer needs its own checkpoints.
    """

    def __init__(self, adapter: Adapter):
        self.adapter = adapter
        self.saved: list[Path] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401  of the Trainer
    ) -> None:
        """Refuse arguments by which the Trainer reads its own checkpoints."""
        faults = []
        if args.load_best_model_at_end:
            faults.append("load_best_model_at_end: it reads the whole model back")
        if args.save_strategy == "best":
            faults.append(
                "save_strategy: 'best' is decided after this callback; use steps or epoch"
            )
        if faults:
            raise SpecError("SaveAdapter writes the adapter alone.", faults)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401  of the Trainer
    ) -> None:
        """Save the adapter if a checkpoint is due after this step, or this epoch."""
        self._save_if_due(args, state, control)

    on_epoch_end = on_step_end

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401  of the Trainer
    ) -> None:
        """Save the adapter as it is at the end."""
        if state.is_world_process_zero:
            self.adapter.save(Path(str(args.output_dir)))

    def _save_if_due(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> None:
        if not control.should_save:
            return
        control.should_save = False  # The Trainer's own checkpoint would hold the whole model.
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir)) / CHECKPOINT.format(step=state.global_step)
        if not folder.exists():
            self.saved.append(folder)
        self.adapter.save(folder)
        while args.save_total_limit and len(self.saved) > args.save_total_limit:
            shutil.rmtree(self.saved.pop(0))
