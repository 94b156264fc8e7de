"""Fields of vLLM's requests that only an operator could be trusted with, and so nobody may set."""

from pydantic import BaseModel

from service.errors import InvalidRequest

# A template is a program that runs in this process; transfers name machines that the engine would connect to; the others are arguments for
# a media processor that is not asked here.
OPERATOR_FIELDS = (
    "chat_template",
    "kv_transfer_params",
    "ec_transfer_params",
    "mm_processor_kwargs",
    "media_io_kwargs",
)


def refuse_operator_fields(request: BaseModel) -> None:
    """Raises InvalidRequest that names the field."""
    for name in OPERATOR_FIELDS:
        if getattr(request, name, None) is not None:
            raise InvalidRequest(f"{name!r} can't be set by a request.", param=name)
