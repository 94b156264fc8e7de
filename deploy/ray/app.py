"""The service as an application of Ray Serve: every replica loads the model, answers, refuses and counts as `blsp serve` does.

Connections are Ray's: its proxies take them and hand requests on. docs/ray.md says what that changes.
"""

import asyncio
import logging
import os
from contextlib import suppress
from typing import Any

from fastapi import FastAPI
from prometheus_client import start_http_server
from pydantic import Field
from ray import serve
from ray.serve.config import BackpressureConfig, RequestRouterConfig

from service.errors import OptionError
from service.settings import ServeSettings
from service.telemetry import logs

METRICS_PORTS = 16  # most replicas of a node whose metrics can be asked for
LAST_WORDS_SECONDS = 2.0  # in which those that wait for an engine hear of its end

log = logging.getLogger("service")


class RaySettings(ServeSettings):
    """What `blsp serve --help` lists, and what only replicas have; `host` is where their metrics are, `port` is nobody's."""

    metrics_port: int = Field(
        9400,
        ge=0,
        le=65535 - METRICS_PORTS,
        description="replicas of a node show their metrics at the first free ports from here; 0: none",
    )


@serve.deployment(
    # A replica that is asked for more hands the request to another one.
    max_ongoing_requests=64,
    # Beyond what the replicas take, this many wait in each proxy; further ones are refused.
    max_queued_requests=128,
    backpressure_config=BackpressureConfig(status_code=429, retry_after_s=2),
    request_router_config=RequestRouterConfig(
        request_router_class="deploy.ray.router:Affinity",
        request_router_kwargs={"busy_requests": 32, "num_fallback_replicas": 64},
    ),
    health_check_period_s=5,
    health_check_timeout_s=30,
    # What runs may end while its replica goes; what runs for longer is cut off.
    graceful_shutdown_timeout_s=150,
)
@serve.ingress()
class Speech:
    """One replica: the service's own application in a process of Ray's."""

    app: FastAPI

    def __init__(self, settings: RaySettings) -> None:
        logs.configure(settings.log_format)
        self._settings = settings
        self._loaded = asyncio.Event()  # or failed
        _show_metrics(settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray asks for it here, and not on the node that deploys."""
        from service.http.app import create_app

        return create_app(self._settings, self._load, self._stop)

    async def _load(self) -> Any:
        from service.loading import load

        service = await load(self._settings, self._settings.names(), log.info, self._settings.watched_folder())
        self._loaded.set()
        return service

    def _stop(self) -> None:
        """Ends a replica whose engine has died, so that Ray starts another; what can't be loaded is `check_health`'s to say."""
        if self._loaded.is_set():
            asyncio.get_running_loop().call_later(LAST_WORDS_SECONDS, os._exit, 1)
        self._loaded.set()

    async def check_health(self) -> None:
        """Returns when a first request has gone all the way through, which makes Ray send others, and while the engine lives.

        Raises what is wrong.
        """
        await self._loaded.wait()
        if self.app.state.failure is not None:
            raise self.app.state.failure
        await self.app.state.service.engine.check()


def app(settings: RaySettings) -> serve.Application:
    """The application, of the `args` in Ray's configuration file and of the variables `BLSP_…` where it is built."""
    return Speech.bind(settings)  # type: ignore[attr-defined]  # which Ray's decorator adds


def _show_metrics(settings: RaySettings) -> None:
    """Behind Ray's proxy, `/metrics` is that of any replica."""
    first = settings.metrics_port
    if not first:
        return
    for port in range(first, first + METRICS_PORTS):
        with suppress(OSError):  # another replica's
            start_http_server(port, settings.host)
            log.info("metrics of this replica: http://%s:%d/metrics", settings.host, port)
            return
    raise OptionError(
        f"None of the ports {first} to {first + METRICS_PORTS - 1} is free for the metrics of this replica."
    )
