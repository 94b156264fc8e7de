"""The page at `/` and its files, with headers that let it load nothing from elsewhere."""

import hashlib
import mimetypes
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response

from service.page import FOLDER
from service.settings import DEFAULT_MODEL

SAMPLES = DEFAULT_MODEL.parent / "samples"

FILES: dict[str, Path] = {
    **{file.name: file for file in sorted(FOLDER.iterdir()) if file.suffix in (".css", ".js", ".svg")},
    **{name: SAMPLES / name for name in ("capital.flac", "sky.flac", "sunday.flac")},
}
PATHS = ("/", *(f"/page/{name}" for name in FILES))
"""All that can be asked for here; none of it needs a key, for the page asks for one itself."""

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' data: blob:",
    "media-src": "'self' blob: data:",
    "worker-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{kind} {sources}" for kind, sources in POLICY.items()),
    "Permissions-Policy": "microphone=(self)",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # ask whether it is still so: see the ETag
}
TYPES = {".js": "text/javascript", ".flac": "audio/flac"}  # the others as the machine's own tables have them

router = APIRouter(include_in_schema=False)


@router.get("/")
def page(request: Request) -> Response:
    """The page itself."""
    return _answer(FOLDER / "index.html", request)


@router.get("/page/{file}")
def page_file(file: str, request: Request) -> Response:
    """What the page is made of, and samples to ask about."""
    if file not in FILES:
        raise HTTPException(404)
    return _answer(FILES[file], request)


def _answer(file: Path, request: Request) -> Response:
    body = file.read_bytes()
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = HEADERS | {"ETag": etag}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0])
