"""Models of publications, by shape, and the parameters that other methods would train on them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PREFIX = "card:"


@dataclass(frozen=True)
class PublishedModel:
    """A published model.

    Attributes:
        config_class: name of a config class of transformers.
        sizes: settings that differ from the defaults of that class.
        task: task that the publication used it for.
    """

    config_class: str
    sizes: dict[str, object]
    task: str = "causal-lm"

    def config(self) -> "PretrainedConfig":
        """Return a config of transformers."""
        import transformers

        return getattr(transformers, self.config_class)(**self.sizes)


_ROBERTA: dict[str, object] = {
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
}
PUBLISHED = {
    "gpt2": PublishedModel("GPT2Config", {}),
    "gpt2-medium": PublishedModel("GPT2Config", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "gpt2-large": PublishedModel("GPT2Config", {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
    "roberta-base": PublishedModel("RobertaConfig", _ROBERTA, "classify"),
    "roberta-large": PublishedModel(
        "RobertaConfig",
        {
            **_ROBERTA,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
        "classify",
    ),
    "deberta-v2-xxlarge": PublishedModel(
        "DebertaV2Config",
        {
            "hidden_size": 1536,
            "num_hidden_layers": 48,
            "num_attention_heads": 24,
            "intermediate_size": 6144,
            "vocab_size": 128100,
            "type_vocab_size": 0,
            "relative_attention": True,
            "position_buckets": 256,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "conv_kernel_size": 3,
            "conv_act": "gelu",
            "position_biased_input": False,
            "max_relative_positions": -1,
        },
        "classify",
    ),
    # GPT-3's blocks are GPT-2's. OPT's class is such a block with q, k and v apart; it adds two
    # positions of its own.
    "gpt3": PublishedModel(
        "OPTConfig",
        {
            "hidden_size": 12288,
            "num_hidden_layers": 96,
            "num_attention_heads": 96,
            "ffn_dim": 49152,
            "word_embed_proj_dim": 12288,
            "vocab_size": 50257,
            "max_position_embeddings": 2046,
        },
    ),
    "bloom-1b7": PublishedModel(
        "BloomConfig", {"vocab_size": 250880, "hidden_size": 2048, "n_layer": 24, "n_head": 16}
    ),
}


def bottleneck(width: int, rank: int, adapters: int) -> int:
    """Return the parameters of bottleneck adapters: two matrices and their biases each.

    Houlsby et al. have two adapters a block, Pfeiffer et al. one.

    >>> bottleneck(12288, rank=1, adapters=2 * 96)
    7078080
    """
    return adapters * (2 * width * rank + rank + width)


def prefix_embedding(width: int, tokens: int) -> int:
    """Return the parameters of a prefix that is trained as embeddings.

    >>> prefix_embedding(12288, 256 + 8)
    3244032
    """
    return width * tokens


def prefix_layer(width: int, tokens: int, layers: int) -> int:
    """Return the parameters of a prefix that is trained as activations of every block.

    >>> prefix_layer(12288, 8 + 8, 96)
    18874368
    """
    return layers * width * tokens


def blocks(width: int, count: int) -> int:
    """Return the parameters of so many blocks of a GPT.

    Each has four attention matrices, a feed-forward layer of four widths, and two norms.

    >>> blocks(1024, 2)
    25192448
    """
    return count * (12 * width**2 + 13 * width)


def count_other_methods(width: int, layers: int, rank: int) -> dict[str, int]:
    """Return the parameters that other methods would train on a model of this shape, by name."""
    return {
        f"bottleneck adapters, two a block, width {rank}": bottleneck(width, rank, 2 * layers),
        f"bottleneck adapters, one a block, width {rank}": bottleneck(width, rank, layers),
        "a prefix of 16 tokens, embeddings alone": prefix_embedding(width, 16),
        "a prefix of 16 tokens at every block": prefix_layer(width, 16, layers),
        "the top two blocks whole": blocks(width, 2),
    }
