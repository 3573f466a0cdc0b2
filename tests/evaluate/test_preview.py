"""The preview shows each token as the text that it adds."""

from typing import Any

from lorakit.evaluate.preview import _decode_pieces


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: list[int], **options: Any) -> str:
        return bytes(ids).decode("utf-8", "replace")

    def convert_ids_to_tokens(self, token: int) -> str:
        return f"<0x{token:02X}>"


def pieces(content: bytes) -> list[str]:
    tokenizer: Any = Bytes()
    return _decode_pieces(tokenizer, list(content))


def test_a_character_of_several_tokens_is_shown_whole() -> None:
    assert pieces("aü本b".encode()) == ["a", "", "ü", "", "", "本", "b"]
    assert "".join(pieces("日本".encode())) == "日本"


def test_half_a_character_is_shown_as_it_is() -> None:
    assert pieces(b"a\xe6\x9c") == ["a", "", "\ufffd"]
    assert pieces(b"\xe6a") == ["", "\ufffda"]
    assert "".join(pieces("a\ufffdb".encode())) == "a\ufffdb"
