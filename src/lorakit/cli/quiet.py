"""Silence for the chatter of libraries: lorakit itself says what matters."""

import logging
import warnings

LIBRARIES = ("transformers", "accelerate", "datasets", "huggingface_hub", "sacrebleu")


def silence_libraries() -> None:
    """Hide warnings and information of other libraries; their errors still show."""
    warnings.filterwarnings("ignore")
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
