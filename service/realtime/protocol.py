"""The events of the socket: what a client may send, and how what is sent to it is written."""

import json
import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from service.answers.fields import check_json, invalid_field
from service.errors import ApiError, InvalidRequest

ID_CHARACTERS = 21
MAX_ID = 256  # characters of an id that a client gives

Event = dict[str, Any]


class RealtimeError(InvalidRequest):
    """What is wrong with an event of a client; the socket stays open."""

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.code = code


def new_id(kind: str) -> str:
    """An id that no other thing of that kind has."""
    return f"{kind}_{secrets.token_hex(ID_CHARACTERS)[:ID_CHARACTERS]}"


def event(kind: str, **fields: Any) -> Event:
    """An event of the server's."""
    return {"type": kind, "event_id": new_id("event"), **fields}


def error_event(error: ApiError, event_id: str | None = None) -> Event:
    """What is wrong with an event, or went wrong."""
    told = error.body()["error"]
    return event("error", error=told | {"event_id": event_id})


def invalid(error: ValidationError, *where: str) -> InvalidRequest:
    """What pydantic found wrong first, in what stands `where`; the names that it gives the members of unions are left out."""
    first = error.errors()[0]
    return invalid_field({**first, "loc": (*where, *(part for part in first["loc"] if part not in TAGS))})


class _Event(BaseModel):
    model_config = ConfigDict(extra="ignore")

    event_id: Annotated[str, Field(max_length=512)] | None = None


Id = Annotated[str, Field(min_length=1, max_length=MAX_ID)]


class SessionUpdate(_Event):
    """Changes what the session is set to."""

    type: Literal["session.update"]
    session: dict[str, Any]


class Append(_Event):
    """A further piece of what is said, in base64."""

    type: Literal["input_audio_buffer.append"]
    audio: str


class Commit(_Event):
    """Ends what is said."""

    type: Literal["input_audio_buffer.commit"]


class Clear(_Event):
    """Forgets what is said and not committed."""

    type: Literal["input_audio_buffer.clear"]


class ItemCreate(_Event):
    """Puts an item into the conversation."""

    type: Literal["conversation.item.create"]
    item: dict[str, Any]
    previous_item_id: Id | None = None


class ItemRetrieve(_Event):
    """Asks for an item."""

    type: Literal["conversation.item.retrieve"]
    item_id: Id


class ItemDelete(_Event):
    """Takes an item out of the conversation."""

    type: Literal["conversation.item.delete"]
    item_id: Id


class ItemTruncate(_Event):
    """Cuts what the model has said, which here is never audio."""

    type: Literal["conversation.item.truncate"]
    item_id: Id


def _none_as_auto(value: Any) -> Any:
    return "auto" if value is None else value


class ResponseOptions(BaseModel):
    """What a response is to be like; None: as the session says."""

    model_config = ConfigDict(extra="ignore")

    conversation: Annotated[Literal["auto", "none"], BeforeValidator(_none_as_auto)] = "auto"
    input: list[dict[str, Any]] | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | Literal["inf"] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    metadata: dict[str, Any] | None = None


def _none_as_empty(value: Any) -> Any:
    return {} if value is None else value


class ResponseCreate(_Event):
    """Asks for a response."""

    type: Literal["response.create"]
    response: Annotated[ResponseOptions, BeforeValidator(_none_as_empty)] = Field(default_factory=ResponseOptions)


class ResponseCancel(_Event):
    """Ends a response."""

    type: Literal["response.cancel"]
    response_id: Id | None = None


class OutputClear(_Event):
    """Of WebRTC: there is no audio to clear."""

    type: Literal["output_audio_buffer.clear"]


ClientEvent = (
    SessionUpdate
    | Append
    | Commit
    | Clear
    | ItemCreate
    | ItemRetrieve
    | ItemDelete
    | ItemTruncate
    | ResponseCreate
    | ResponseCancel
    | OutputClear
)
_CLIENT_EVENT: TypeAdapter[ClientEvent] = TypeAdapter(Annotated[ClientEvent, Field(discriminator="type")])
_KINDS = tuple(kind.model_fields["type"].annotation.__args__[0] for kind in ClientEvent.__args__)
TAGS = {*_KINDS, "audio/pcm", "audio/pcmu", "audio/pcma", "constrained-int", "literal['inf']"}


def read_values(text: str) -> Any:
    """The values of a JSON text; raises RealtimeError for what is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RealtimeError(f"The event is not valid JSON: {error}.", code="invalid_json") from error


def read_event(values: Any) -> ClientEvent:
    """An event of a client's; raises InvalidRequest that names what is wrong."""
    if not isinstance(values, dict):
        raise RealtimeError("An event is a JSON object with a 'type'.", code="invalid_event")
    try:
        check_json(values)
        return _CLIENT_EVENT.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"].startswith("union_tag"):
            known = ", ".join(_KINDS)
            raise RealtimeError(
                f"There is no event {str(values.get('type'))[:64]!r}; there are {known}.",
                code="invalid_value",
                param="type",
            ) from error
        raise invalid(error) from error
    except ValueError as error:
        raise RealtimeError(f"The event can't be read: {error}.", code="invalid_event") from error
