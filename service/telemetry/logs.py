"""The log on stderr: one line a record, as text or JSON, each with the id of the request it belongs to.

What users send and get, audio or text, is never logged.
"""

import logging
import re
import sys
import uuid
from contextvars import ContextVar
from typing import Literal, TextIO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

Form = Literal["text", "json"]

request_id: ContextVar[str] = ContextVar("request_id", default="-")
_WELL_FORMED = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def begin_request(given: str | None) -> str:
    """Names the request that begins: as its client does where that name is harmless in a log line, else with a new one."""
    name = given if given is not None and _WELL_FORMED.fullmatch(given) else uuid.uuid4().hex
    request_id.set(name)
    return name


def configure(form: Form) -> None:
    """Sends the records of this process to stderr."""
    logging.basicConfig(level=logging.INFO, handlers=[handler(form, sys.stderr)], force=True)
    logging.getLogger("python_multipart").setLevel(
        logging.ERROR
    )  # it warns of every damaged form; clients hear of that
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it tells of every change


def handler(form: Form, stream: TextIO) -> logging.Handler:
    """Writes records to a stream, one line each."""
    handler = logging.StreamHandler(stream)
    handler.addFilter(_add_request_id)
    handler.setFormatter(_JSON if form == "json" else _TEXT)
    return handler


_TEXT = logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s")
_JSON = JsonFormatter(
    "{levelname}{name}{message}{request_id}",
    style="{",
    timestamp="time",
    reserved_attrs=[*RESERVED_ATTRS, "vllm_process_name"],  # vLLM adds it to every record
    rename_fields={"levelname": "level", "name": "logger"},
    json_ensure_ascii=False,
)


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True
