"""The cells of the README's table about LLaMA-Factory and Unsloth, read in their source.

Neither can be installed beside the versions that lorakit is tested with, so `make peers` unpacks
the two packages without what they need, and nothing of them is imported.
"""

from pathlib import Path

import pytest

PEERS = Path(__file__).parents[2] / ".venv" / "peers"
pytestmark = pytest.mark.skipif(
    not (PEERS / "unsloth").is_dir(), reason="no sources of other tools: make peers"
)
# What the table says that no package has. A name that appears in one of them is to be read.
FUNCTIONS_OF_NO_TOOL = ("allocate_ranks", "rank_search", "intruder", "add_weighted_adapter")


def read(name: str) -> str:
    """Return the text of one source file."""
    return (PEERS / name).read_text("utf-8")


def sources(package: str) -> dict[str, str]:
    """Return the texts of all Python files of a package by their paths."""
    paths = sorted((PEERS / package).rglob("*.py"))
    return {str(path.relative_to(PEERS)): path.read_text("utf-8") for path in paths}


@pytest.mark.parametrize(
    "call", ["get_peft_model(", "PeftModel.from_pretrained(", "merge_and_unload("]
)
def test_llama_factory_leaves_lora_to_peft(call: str) -> None:
    assert call in read("llamafactory/model/adapter.py")


@pytest.mark.parametrize("package", ["llamafactory", "unsloth"])
@pytest.mark.parametrize("name", FUNCTIONS_OF_NO_TOOL)
def test_no_tool_has_a_function_for_it(package: str, name: str) -> None:
    assert [path for path, text in sources(package).items() if name in text] == []


def test_llama_factory_has_no_unmerge() -> None:
    assert not any("unmerge" in text for text in sources("llamafactory").values())


def test_unsloth_exports_no_compared_folder() -> None:
    text = read("unsloth/save.py")
    assert "merged_16bit" in text
    assert "allclose" not in text


def test_unsloth_accepts_unknown_targets() -> None:
    text = read("unsloth/models/llama.py")
    unknown = text.partition("assert module in accepted_modules")[2].partition("if hasattr")[0]
    assert "final_modules.append(module)" in unknown
    assert "might be noticeably slower" in unknown
    assert "raise" not in unknown


def test_unsloth_trains_text_models_on_a_cpu_without_its_kernels() -> None:
    text = read("unsloth/_cpu_init.py")
    assert "supported: text LoRA" in text
    assert "vision / audio models are not supported on the CPU backend" in text
    assert "never imports the GPU model / kernel stack" in text


def test_unsloth_has_kernels_of_its_own() -> None:
    assert "import triton" in read("unsloth/kernels/geglu.py")


def test_unsloth_studio_estimates_memory_by_formulas() -> None:
    page = read("studio/backend/utils/hardware/VRAM_ESTIMATION.md")
    assert "QKVO = (H + K + K + H) * H" in page


def test_two_tools_have_a_page_and_trainers_of_preferences() -> None:
    assert "import gradio" in read("llamafactory/webui/interface.py")
    assert "DPOTrainer" in read("llamafactory/train/dpo/trainer.py")
    assert (PEERS / "studio" / "frontend").is_dir()
    assert "GRPOTrainer" in read("unsloth/models/rl.py")
