"""The text of a response as it may be shown: nothing that may still become a stop string."""

from collections.abc import Sequence

from reference.tokenizer import StreamDecoder


class StopText:
    """Decodes one response token by token, up to the first stop string, which is not part of the text.

    Args:
        decoder: None where no text is wanted.
        stops: none of them empty; they may span tokens.

    Attributes:
        found: the stop string that ended the text, the first of them to be whole; None as long as there is none.
    """

    def __init__(self, decoder: StreamDecoder | None, stops: Sequence[str]) -> None:
        self._decoder, self._stops = decoder, stops
        self._held = ""
        self.found: str | None = None

    def push(self, token: int) -> str:
        """Take one token; what may now be shown."""
        if self._decoder is None:
            return ""
        self._held += self._decoder.push(token)
        whole = [(self._held.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in self._held]
        if whole:
            end, _, self.found = min(whole)  # of those that end here the longest
            shown, self._held = self._held[: end - len(self.found)], ""
            return shown
        kept = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return shown

    def finish(self) -> str:
        """What was held back when the response ended otherwise."""
        if self._decoder is None or self.found is not None:
            return ""
        shown, self._held = self._held + self._decoder.finish(), ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """The longest end of a text that a stop string, longer than it, begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
