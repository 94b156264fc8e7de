"""Every refusal the service makes, with the HTTP status and the OpenAI error code that go with it.

This file knows nothing about HTTP frameworks: `service/http/app.py` turns an `ApiError` into a response.
"""

from typing import Any


class ApiError(Exception):
    """A refusal in OpenAI's error shape.

    `status` is the HTTP status, `type` and `code` are OpenAI's fields, `param` names the field of the request that is wrong.
    The message says what is wrong and what would be right.
    """

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def body(self) -> dict[str, Any]:
        """The JSON body, as OpenAI's clients read it."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class OptionError(ValueError):
    """An option of the command line that is wrong."""


class InvalidRequest(ApiError):
    """A field is missing, unknown or out of range."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class InvalidAudio(InvalidRequest):
    """The audio is empty, truncated or damaged."""

    code = "invalid_audio"


class TruncatedAudio(InvalidAudio):
    """The file ends before its sound does; what is there was decoded."""


class ContextTooLong(InvalidRequest):
    """The prompt does not fit the LLM's context."""

    code = "context_length_exceeded"


class InvalidKey(InvalidRequest):
    """The API key is missing or nobody's."""

    status = 401
    code = "invalid_api_key"


class OriginRefused(InvalidRequest):
    """A page of another origin asks."""

    status = 403
    code = "origin_not_allowed"


class NotAdmin(InvalidRequest):
    """The client's key does not open this."""

    status = 403
    code = "not_admin"


class NameTaken(InvalidRequest):
    """Another model has the name."""

    status = 409
    code = "name_taken"


class ModelNotFound(InvalidRequest):
    """No model of that name is served."""

    status = 404
    code = "model_not_found"


class UploadTooLarge(InvalidRequest):
    """The body is larger than the limit."""

    status = 413
    code = "upload_too_large"


class AudioTooLong(InvalidRequest):
    """The audio lasts longer than the limit."""

    status = 413
    code = "audio_too_long"


class WrongMediaType(InvalidRequest):
    """The body is of a kind, or in a coding, that is not read."""

    status = 415
    code = "unsupported_media_type"


class NotAudio(WrongMediaType):
    """The upload is no kind of audio that the decoder knows."""


class Unavailable(ApiError):
    """The service is loading, draining, or has lost its engine."""

    status = 503
    type = "service_unavailable"
    code = "unavailable"


class Overloaded(ApiError):
    """Too much is being done or waits; the client may try again after `retry_after` seconds. `code` names the limit."""

    status = 429
    type = "rate_limit_error"
    code: str

    def __init__(self, message: str, *, code: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


class UploadTooSlow(InvalidRequest):
    """The body did not come in time."""

    status = 408
    code = "upload_too_slow"


class HeadTooLarge(InvalidRequest):
    """What comes before the body is too large."""

    status = 431
    code = "head_too_large"


class DeadlineExceeded(ApiError):
    """The service did not get done in time."""

    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"
