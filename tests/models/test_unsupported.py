"""Models of classes that a task does not take are refused in words, before weights are read."""

from pathlib import Path

import pytest
import transformers

from lorakit.errors import ModelError
from lorakit.models.load import load
from lorakit.plan.meta_model import load_meta_model

CLASSES = {
    "T5Config": "T5ForConditionalGeneration",
    "CLIPConfig": "CLIPModel",
    "ViTConfig": "ViTForImageClassification",
}


@pytest.mark.parametrize("config", CLASSES)
@pytest.mark.parametrize("read", [load, load_meta_model])
def test_a_class_that_is_not_supported_is_named(config: str, read: object, tmp_path: Path) -> None:
    made = getattr(transformers, config)(architectures=[CLASSES[config]])
    made.save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        (load if read is load else load_meta_model)(str(tmp_path), "causal-lm")
    assert str(caught.value) == (
        f"{tmp_path} is a {CLASSES[config]}, which lorakit cannot load for causal-lm.\n"
        "The commands take the classes of transformers' AutoModelForCausalLM and "
        "AutoModelForImageTextToText. For others, attach the adapter in Python (lorakit.attach) "
        "and train with your own loop; `lorakit merge` takes any class."
    )
