"""The admin application: everything over HTTP but invocations. Starlette; nothing here is on the hot path."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rewarm.control.plane import ControlPlane
from rewarm.errors import BadRequest, BodyTooLarge, Busy, MethodNotAllowed, NotFound, RewarmError, Unavailable
from rewarm.facts.function import FunctionSpec
from rewarm.obs.metrics import Collector, page
from rewarm.store.disk import disk_errors

Handler = Callable[[Request], Awaitable[Response]]
_AWS_RUNTIMES = {"python": "python3.11", "nodejs": "nodejs20.x"}  # AWS's names for what is nearest
_EXTENSIONS = ["binary_tensor_data", "model_repository"]
_UPLOADS_MAX = 2  # at a time: each may fill deploy_bytes_max of the disk
_UPLOAD_WAIT_S = 30.0  # shorter than the front door waits for a body that nobody reads
_WRITE_BYTES = 1 << 20
_JSON_BYTES_MAX = 1 << 20
_LOCAL_HOST = re.compile(rb"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d*)?", re.IGNORECASE)


def make_application(plane: ControlPlane) -> Starlette:
    """The ASGI application of one server."""
    views = _Views(plane)
    invocation = [
        "/invoke/{name}", "/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer",
        "/2015-03-31/functions/{name}/invocations",
    ]  # fmt: skip
    routes = [
        Route("/", views.index),
        Route("/metrics", views.metrics),
        Route("/v2", views.v2_server),
        Route("/v2/health/live", views.v2_live),
        Route("/v2/health/ready", views.v2_ready),
        Route("/v2/models/{name}", views.v2_model),
        Route("/v2/models/{name}/ready", views.v2_model_ready),
        Route("/v2/models/{name}/versions/{version}", views.v2_model),
        Route("/v2/models/{name}/versions/{version}/ready", views.v2_model_ready),
        Route("/v2/repository/index", views.v2_index, methods=["POST"]),
        Route("/v2/repository/models/{name}/{verb:str}", views.v2_repository, methods=["POST"]),
        Route("/2015-03-31/functions", views.lambda_list),
        Route("/2015-03-31/functions/{name}/configuration", views.lambda_one),
        Route("/api/v1/server", views.server),
        Route("/api/v1/instances", views.instances),
        Route("/api/v1/ps", views.ps),
        Route("/api/v1/functions", views.functions),
        Route("/api/v1/functions", views.deploy, methods=["PUT"]),
        Route("/api/v1/functions/{name}", views.function),
        Route("/api/v1/functions/{name}", views.remove, methods=["DELETE"]),
        Route("/api/v1/functions/{name}/stats", views.stats),
        Route("/api/v1/functions/{name}/logs", views.logs),
        Route("/api/v1/functions/{name}/versions", views.versions),
        Route("/api/v1/functions/{name}/rollback", views.rollback, methods=["POST"]),
        Route("/api/v1/functions/{name}/profile", views.profile, methods=["GET", "PUT", "DELETE"]),
        Route("/api/v1/functions/{name}/profile/twin", views.twin, methods=["POST", "DELETE"]),
        Route("/api/v1/functions/{name}/{verb:str}", views.order, methods=["POST"]),
        *(Route(path, views.wrong_verb, methods=["GET", "PUT", "DELETE", "PATCH", "OPTIONS"]) for path in invocation),
    ]
    handlers: dict[Any, Any] = {RewarmError: _error, HTTPException: _http_error, Exception: _fault}
    guards = [Middleware(_LocalHostOnly)] if is_loopback(plane.config.host) else []
    return Starlette(routes=routes, exception_handlers=handlers, middleware=guards)


class _LocalHostOnly:
    """Refuses requests that were meant for another host: a web page can give its own name the address 127.0.0.1.

    No Host at all is fine, as no browser does that.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hosts = [value for name, value in scope.get("headers", ()) if name == b"host"]
        foreign = [host for host in hosts if not _LOCAL_HOST.fullmatch(host)]
        if not foreign:
            await self._app(scope, receive, send)
            return
        text = (
            "a server on a loopback address answers here to the hosts localhost, 127.0.0.1 and [::1] only, "
            f"not to {foreign[0].decode('latin-1')!r}; a proxy in front must set the Host header"
        )
        await _json({"error": text, "code": "forbidden_host"}, 403)(scope, receive, send)


def is_loopback(host: str) -> bool:
    """Nobody but this machine can reach a server on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _json(data: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(data), status, media_type="application/json")


def _answer(error: RewarmError) -> Response:
    response = _json(error.to_json(), error.status)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    return response


async def _error(request: Request, error: RewarmError) -> Response:
    return _answer(error)


async def _http_error(request: Request, error: HTTPException) -> Response:
    if error.status_code == 405:
        response = _answer(MethodNotAllowed(f"{request.method} is not possible on {request.url.path}"))
        # Starlette names the methods of one route, and a path may have several.
        routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
        response.headers["Allow"] = ", ".join(sorted({method for route in routes for method in route.methods}))
        return response
    if error.status_code == 404:
        return _answer(NotFound(f"there is nothing at {request.url.path}; see docs/http-api.md"))
    return _json({"error": str(error.detail), "code": "http"}, error.status_code)


async def _fault(request: Request, error: Exception) -> Response:
    return _answer(RewarmError(f"the server failed on {request.url.path}; its log has the details"))


class _Views:
    """One method a route."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._collector = Collector(plane.stats, plane.executor.layers, plane.gauges)
        self._uploads = asyncio.Semaphore(_UPLOADS_MAX)

    async def index(self, request: Request) -> Response:
        return _json({"name": "rewarm", "version": self._plane.version, "api": "/api/v1/server", "v2": "/v2"})

    async def metrics(self, request: Request) -> Response:
        return Response(page(self._collector), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def wrong_verb(self, request: Request) -> Response:
        response = _answer(MethodNotAllowed(f"{request.url.path} takes POST, not {request.method}"))
        response.headers["Allow"] = "POST"
        return response

    # ------------------------------------------------------------ Open Inference Protocol

    async def v2_server(self, request: Request) -> Response:
        return _json({"name": "rewarm", "version": self._plane.version, "extensions": _EXTENSIONS})

    async def v2_live(self, request: Request) -> Response:
        return _json({"live": True})

    async def v2_ready(self, request: Request) -> Response:
        ready = not self._plane.node.draining
        return _json({"ready": ready}, 200 if ready else 503)

    async def v2_model(self, request: Request) -> Response:
        revision = self._revision(request)
        spec: FunctionSpec = revision.spec

        def tensors(items: Any) -> list[dict[str, Any]]:
            return [
                {"name": n, "datatype": t.datatype, "shape": [-1, *t.shape]} if t
                else {"name": n, "datatype": "FP32", "shape": [-1, -1]}
                for n, t in items
            ]  # fmt: skip

        return _json({
            "name": spec.name, "versions": [str(revision.version)], "platform": f"rewarm_python_{spec.kind}",
            "inputs": tensors(spec.inputs), "outputs": tensors(spec.outputs),
        })  # fmt: skip

    async def v2_model_ready(self, request: Request) -> Response:
        name = self._revision(request).name
        ready = self._plane.ready(name)
        return _json({"name": name, "ready": ready}, 200 if ready else 503)

    def _revision(self, request: Request) -> Any:
        name, version = request.path_params["name"], request.path_params.get("version")
        revision = self._plane.revision(name)
        if revision is None or (version is not None and version != str(revision.version)):
            what = f"version {version} of {name!r}" if revision is not None else f"model {name!r}"
            raise NotFound(f"there is no {what}; see what there is with: rewarm ls")
        return revision

    async def v2_index(self, request: Request) -> Response:
        return _json([
            {
                "name": f["name"], "version": str(f["version"]), "state": "READY" if f["ready"] else "UNAVAILABLE",
                "reason": f["last_error"] or "",
            }
            for f in self._plane.functions()
        ])  # fmt: skip

    async def v2_repository(self, request: Request) -> Response:
        verb = request.path_params["verb"]
        if verb not in ("load", "unload"):
            raise NotFound(f"there is nothing at {request.url.path}")
        self._plane.order(request.path_params["name"], verb)
        return _json({})

    # ------------------------------------------------------------ AWS Lambda

    def _configuration(self, function: dict[str, Any]) -> dict[str, Any]:
        name = function["name"]
        return {
            "FunctionName": name, "FunctionArn": f"arn:aws:lambda:local:000000000000:function:{name}",
            "Runtime": _AWS_RUNTIMES[function["runtime"]], "Handler": name, "CodeSha256": function["digest"],
            "State": "Active", "Version": str(function["version"]), "Timeout": max(1, round(function["timeout_s"])),
            "MemorySize": function["memory_bytes"] >> 20, "CodeSize": function["weights_bytes"],
        }  # fmt: skip

    async def lambda_list(self, request: Request) -> Response:
        return _json({"Functions": [self._configuration(f) for f in self._plane.functions()]})

    async def lambda_one(self, request: Request) -> Response:
        try:
            return _json(self._configuration(self._plane.function(request.path_params["name"])))
        except NotFound as error:
            response = _json({"Type": "User", "Message": error.message, "message": error.message}, 404)
            response.headers["x-amzn-ErrorType"] = "ResourceNotFoundException"
            return response

    # ------------------------------------------------------------ /api/v1

    async def server(self, request: Request) -> Response:
        return _json(self._plane.server())

    async def instances(self, request: Request) -> Response:
        return _json(self._plane.instances())

    async def ps(self, request: Request) -> Response:
        return _json(self._plane.ps())

    async def functions(self, request: Request) -> Response:
        return _json({"functions": self._plane.functions()})

    async def function(self, request: Request) -> Response:
        return _json(self._plane.function(request.path_params["name"]))

    async def stats(self, request: Request) -> Response:
        return _json(self._plane.stats_of(request.path_params["name"]))

    async def logs(self, request: Request) -> Response:
        tail = _number(request, "tail", 100)
        instance = _number(request, "instance", None)
        return _json({"lines": self._plane.log_lines(request.path_params["name"], min(tail or 0, 100_000), instance)})

    async def order(self, request: Request) -> Response:
        verb = request.path_params["verb"]
        if verb not in ("flush", "load", "unload"):
            raise NotFound(f"there is nothing at {request.url.path}; the verbs are flush, load and unload")
        return _json(self._plane.order(request.path_params["name"], verb))

    async def profile(self, request: Request) -> Response:
        desk, name = self._plane.profiles, request.path_params["name"]
        if request.method == "PUT":
            return _json(await desk.put(name, await _json_body(request)))
        return _json(await (desk.remove(name) if request.method == "DELETE" else desk.get(name)))

    async def twin(self, request: Request) -> Response:
        desk, name = self._plane.profiles, request.path_params["name"]
        if request.method == "DELETE":
            return _json(desk.end(name))
        return _json(desk.begin(name, await _json_body(request)), 201)

    async def remove(self, request: Request) -> Response:
        return _json(await self._plane.remove(request.path_params["name"]))

    async def versions(self, request: Request) -> Response:
        return _json(await self._plane.versions(request.path_params["name"]))

    async def rollback(self, request: Request) -> Response:
        version = _number(request, "version", None)
        try:
            return _json(await self._plane.rollback(request.path_params["name"], version), 201)
        except asyncio.CancelledError:  # as below
            raise Unavailable("the server was stopped while it rolled back; try again") from None

    async def deploy(self, request: Request) -> Response:
        limit = self._plane.config.limits.deploy_bytes_max
        folder = self._plane.store.stage()
        try:
            try:
                async with asyncio.timeout(_UPLOAD_WAIT_S):
                    await self._uploads.acquire()
            except TimeoutError:
                raise Busy(f"{_UPLOADS_MAX} other uploads are under way; deploy again when they are done") from None
            try:
                await _receive(request, folder / "upload.tar", limit)
            finally:
                self._uploads.release()
            return _json(await self._plane.deploy(folder / "upload.tar"), 201)
        except asyncio.CancelledError:  # the server is stopped and does not wait for a guest to boot
            raise Unavailable("the server was stopped while it deployed; deploy again") from None
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _json_body(request: Request) -> Any:
    """A small body, parsed. Raises BadRequest, BodyTooLarge."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > _JSON_BYTES_MAX:
                raise BodyTooLarge(f"{request.url.path} takes {_JSON_BYTES_MAX} bytes of JSON at most")
        return orjson.loads(body)
    except ClientDisconnect:
        raise BadRequest("the body broke off") from None
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None


async def _receive(request: Request, path: Path, limit: int) -> None:
    """The body into a file; the disk is only waited for in threads."""
    received, gathered = 0, bytearray()
    with disk_errors("store the upload", path), path.open("wb") as file:
        try:
            async for chunk in request.stream():
                received += len(chunk)
                if received > limit:
                    raise BodyTooLarge(f"an upload may have {limit} bytes at most")
                gathered += chunk
                if len(gathered) >= _WRITE_BYTES:
                    await asyncio.to_thread(file.write, gathered)
                    gathered = bytearray()
        except ClientDisconnect:
            raise BadRequest("the upload broke off") from None
        await asyncio.to_thread(file.write, gathered)


def _number(request: Request, name: str, default: int | None) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isdigit() or len(text) > 9:
        raise BadRequest(f"{name} must be a whole number, not {text!r}")
    return int(text)
