"""The tokenizer of a bundle: the library `tokenizers`, with bounds on its work and errors of one line."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tokenizers import Encoding, Tokenizer

from ptp.bundle.tokenizer import MAX_TEXT_BYTES, read_tokenizer
from ptp.errors import BackendError, BundleError, PromptError, PtpError


class BundleTokenizer:
    """Turns a text into token ids and back. All that meets the library goes through here.

    Attributes:
        special: ids of the special tokens, which are no text.
        num_ids: one more than the largest id.
    """

    def __init__(self, text: str | bytes, name: str) -> None:
        """Read a `tokenizer.json`; its truncation and padding are left out.

        Args:
            text: the file's content.
            name: what it is called in errors.

        Raises:
            BundleError: it is no tokenizer, or one whose work is not bounded.
        """
        with _one_line(BundleError, f"this version cannot use {name}", "export the bundle again"):
            read = read_tokenizer(text)
            self._library = Tokenizer.from_str(read.model_dump_json())
            if read.normalizer:
                read.check_normalized(self._library.normalizer.normalize_str)
        self._growth, self.num_ids = read.growth, read.num_ids
        self.special = frozenset(token.id for token in read.added_tokens if token.special)

    def encode(self, text: str, *, add_special_tokens: bool) -> Encoding:
        """Return ids, and the characters that each stands for.

        Args:
            text: valid Unicode.
            add_special_tokens: whether the post-processor adds its tokens.

        Raises:
            PromptError: the text is too long, or has a character that the tokenizer has no token for.
        """
        size, longest = len(text.encode(errors="surrogatepass")), MAX_TEXT_BYTES // self._growth
        if size > longest:
            raise PromptError(
                "the prompt is too long for this tokenizer",
                got=f"{size} bytes",
                expected=f"at most {longest}",
                do="shorten the question",
            )
        with _one_line(PromptError, "the prompt cannot be cut into tokens"):
            return self._library.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens and ids that are no token are left out.

        Raises:
            BackendError: the library failed.
        """
        with _one_line(BackendError, "the tokenizer cannot decode the answer"):
            text: str = self._library.decode(list(ids))
            return text

    def id_to_token(self, token: int) -> str | None:
        """Return the text of a token as it is in the vocabulary."""
        text: str | None = self._library.id_to_token(token)
        return text

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token's text."""
        found: int | None = self._library.token_to_id(token)
        return found


@contextmanager
def _one_line(kind: type[PtpError], what: str, do: str | None = None) -> Iterator[None]:
    """Turn what the library raises into one error: plain `Exception`, and a `BaseException` where Rust panicked."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise kind(what, got=str(error)[:300] or type(error).__name__, do=do) from error
