"""Token ids that a checkpoint's tokenizer and configurations name, against the rows of its embedding."""

from typing import Any

from ptp.errors import CheckpointError


def check_ids(tokenizer: Any, rows: int) -> None:
    """Refuse a tokenizer that gives ids without an embedding; one with fewer tokens than there are rows is usual.

    Args:
        tokenizer: transformers'.
        rows: of the embedding.

    Raises:
        CheckpointError: how many there are, and the first of them.
    """
    names = {number: name for name, number in tokenizer.get_vocab().items()}
    # what stands around every text has ids of its own, whatever the vocabulary says
    added = {number: tokenizer.convert_ids_to_tokens(number) or "" for number in tokenizer("").input_ids}
    if beyond := sorted(number for number in names | added if not 0 <= number < rows):
        name = names.get(beyond[0]) or added[beyond[0]]
        raise CheckpointError(
            f"{len(beyond)} of the tokenizer's tokens have no embedding",
            got=f"{name[:80]!r} with id {beyond[0]}",
            expected=f"ids below vocab_size {rows}",
            do="resize the model's embedding (resize_token_embeddings) or remove the tokens",
        )


def end_tokens(value: object, rows: int) -> tuple[int, ...]:
    """Return the end tokens that `eos_token_id` names: an id, several or none.

    Raises:
        CheckpointError: one is no id of the embedding.
    """
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if odd := [one for one in listed if type(one) is not int or not 0 <= one < rows]:
        raise CheckpointError(
            "eos_token_id is not an id of the model",
            got=", ".join(str(one)[:80] for one in odd[:4]),
            expected=f"0 to {rows - 1}",
            do="correct generation_config.json",
        )
    return tuple(listed)
