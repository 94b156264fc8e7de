"""`/v1/adapters`: loading and unloading adapters while the service runs, for those whose keys are an admin's."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from service import memory
from service.errors import InvalidRequest, NotAdmin
from service.http.json_route import JsonRoute
from service.http.openapi import LOAD, UNLOAD
from service.http.routes import Ready, model_card
from service.settings import NAME, ServeSettings


async def admin_folder(request: Request) -> Path:
    """The folder of adapters, for an admin. Raises NotAdmin for anybody else."""
    settings: ServeSettings = request.app.state.settings
    if request.state.client not in settings.admins:  # nobody's key has the name of those without one
        raise NotAdmin("Only an admin's key loads and unloads adapters; the server's --admins names them.")
    assert settings.adapter_folder is not None
    return settings.adapter_folder


router = APIRouter(route_class=JsonRoute)
Folder = Annotated[Path, Depends(admin_folder)]


class AdapterRequest(BaseModel):
    """Asks for an adapter to be served."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=rf"^{NAME.pattern}$", description="what requests will name as `model`")
    path: str = Field(min_length=1, description="folder of its checkpoint, relative to the server's --adapter-folder")


@router.post("/v1/adapters", **LOAD)
async def load(body: AdapterRequest, folder: Folder, service: Ready) -> dict[str, Any]:
    """Loads an adapter, beside those that serve meanwhile."""
    await service.models.load_adapter(body.name, str(await asyncio.to_thread(below, folder, body.path)))
    return model_card(body.name)


@router.delete("/v1/adapters/{name}", **UNLOAD)
async def unload(name: str, folder: Folder, service: Ready) -> dict[str, Any]:
    """Unloads an adapter; answers when the requests are over that it was answering, and its memory is free."""
    await service.models.unload_adapter(name)
    await asyncio.to_thread(memory.collect)
    return {"id": name, "object": "model", "deleted": True}


def below(folder: Path, path: str) -> Path:
    """A folder within another. Raises InvalidRequest for one that is not there, or elsewhere, be it by way of a link."""
    try:
        found = (folder / path).resolve(strict=True)
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        raise InvalidRequest(f"There is no {path!r} in the folder of adapters.", param="path") from error
    if not found.is_dir() or not found.is_relative_to(folder.resolve()):
        raise InvalidRequest(f"{path!r} is no folder in the folder of adapters.", param="path")
    return found
