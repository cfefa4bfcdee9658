"""Text that is shown while it comes: never a piece of a stop string, and never less than can be shown."""

import random

import pytest

from optimized.stop_text import StopText
from reference.commands import MINIATURE
from reference.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_checkpoint(MINIATURE)


def pushed(text: StopText, tokens: list[int]) -> list[str]:
    """What each token shows, up to a stop string, and what is left at the end."""
    shown = []
    for token in tokens:
        shown.append(text.push(token))
        if text.found is not None:
            break
    return [*shown, text.finish()]


def stopping(*stops: str) -> StopText:
    return StopText(TOKENIZER.stream_decoder(skip_special=True), stops)


def characters(text: str) -> list[int]:
    """Tokens of one character each."""
    return [token for character in text for token in TOKENIZER.encode(character, add_bos=False)]


def test_what_may_become_a_stop_string_is_held_back_until_it_cannot() -> None:
    assert pushed(stopping("abcd"), characters("xabcy")) == ["x", "", "", "", "abcy", ""]
    assert pushed(stopping("abcd"), characters("xababcdz")) == ["x", "", "", "ab", "", "", "", ""]
    assert pushed(stopping("abcd"), characters("abc")) == ["", "", "", "abc"]


def test_the_first_of_several_stop_strings_to_be_whole_ends_the_text() -> None:
    for stops, shown, found in ((("bc", "ab"), "x", "ab"), (("abcd", "bc"), "xa", "bc"), (("abc", "c"), "x", "abc")):
        text = stopping(*stops)
        assert "".join(pushed(text, characters("xabcd"))) == shown
        assert text.found == found


@pytest.mark.parametrize("seed", range(20))
def test_any_text_is_shown_up_to_its_first_stop_string(seed: int) -> None:
    chance = random.Random(seed)
    whole = "".join(chance.choices("abé", k=60))
    stops = ["".join(chance.choices("abé", k=chance.randrange(1, 7))) for _ in range(3)]
    text = stopping(*stops)
    _, start = min(
        [(whole.index(stop) + len(stop), whole.index(stop)) for stop in stops if stop in whole], default=(0, None)
    )
    assert "".join(pushed(text, TOKENIZER.encode(whole, add_bos=False))) == whole[:start]
    assert (text.found is not None) == (start is not None)


def test_half_a_character_at_the_end_is_shown_as_the_tokenizer_shows_it() -> None:
    token = next(token for token in range(TOKENIZER.vocab_size) if TOKENIZER.token_bytes(token) == b"\xc3")
    assert pushed(stopping("a"), [token]) == ["", "�"]


def test_without_a_decoder_there_is_no_text() -> None:
    assert pushed(StopText(None, ()), [5, 6]) == ["", "", ""]
