"""Model families: configuration's `model_type` → adapter."""

from ptp.errors import CheckpointError
from ptp.export.adapters.base import Adapter
from ptp.export.adapters.llava_next import LlavaNext

ADAPTERS: dict[str, type[Adapter]] = {
    "llava_next": LlavaNext,
}


def adapter_for(model_type: object) -> type[Adapter]:
    """Return the adapter of a model type.

    Raises:
        CheckpointError: there is none; the message lists the known ones.
    """
    if not isinstance(model_type, str) or model_type not in ADAPTERS:
        raise CheckpointError(
            f"model type {str(model_type)[:80]!r} is not supported", expected=" or ".join(sorted(ADAPTERS))
        )
    return ADAPTERS[model_type]
