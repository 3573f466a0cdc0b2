"""Keep libraries' own chatter off the terminal: what matters of it is told by lorakit."""

import logging
import warnings


def calm() -> None:
    """Silence warnings and info of the libraries below; errors still show."""
    warnings.filterwarnings("ignore")
    for name in ("transformers", "accelerate", "datasets", "huggingface_hub", "sacrebleu"):
        logging.getLogger(name).setLevel(logging.ERROR)
