"""What stands in the bodies of requests: image files in several forms, and tensors of the Open Inference Protocol."""

import asyncio
import base64
import binascii
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from torch import Tensor

from t2t_vit.deploy.batching import QueueFull
from t2t_vit.deploy.limits import Limits, Rejected

if TYPE_CHECKING:
    from t2t_vit.deploy.service import Service

PENDING = "t2t_vit.pending_bytes"
"""The entry of a request's scope with the bytes that it holds."""


class Encoded(BaseModel):
    """Image files in base64."""

    model_config = ConfigDict(extra="forbid")
    images: list[str] = Field(min_length=1)


class Tensors(BaseModel):
    """A tensor of the Open Inference Protocol."""

    model_config = ConfigDict(strict=True)
    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class InferRequest(BaseModel):
    id: str | None = None
    inputs: list[Tensors] = Field(min_length=1)


IMAGES_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "application/json": {"schema": Encoded.model_json_schema()},
        },
    }
}
"""Of the interface's description: what a body with image files may be."""
INFER_SCHEMA = InferRequest.model_json_schema()
INFER_SCHEMA["properties"]["inputs"]["items"] = INFER_SCHEMA.pop("$defs")["Tensors"]  # whose place is not known there


async def read_images(request: Request, service: "Service") -> list[tuple[str, bytes]]:
    """The image files of a request, with their names.

    Raises:
        Rejected: there are none, too many, or the body is not what its type says.
        QueueFull: too many bytes are being held.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _files_of_form(request, service)
    body = await _body(request, service)
    if kind == "application/json":  # not in this thread: large bodies take long
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(service.decoders, _files_of_json, body, service.limits)
    if kind in ("", "application/octet-stream") or kind.startswith("image/"):
        return [("image", body)]
    raise Rejected(415, f"expected an image, a form or JSON, got {kind}")


async def read_tensors(request: Request, service: "Service") -> tuple[InferRequest, list[bytes] | Tensor]:
    """A request of the Open Inference Protocol, and its image files or its normalised images, (n, C, H, W).

    Raises:
        Rejected, QueueFull: as for `read_images`.
    """
    body, loop = await _body(request, service), asyncio.get_running_loop()
    return await loop.run_in_executor(service.decoders, _tensors_of_json, body, service)


async def _body(request: Request, service: "Service") -> bytes:
    """The body, unless it is too large; what it says of its length need not be true."""
    limits = service.limits
    told = request.headers.get("content-length", "0")
    if told.isdecimal() and int(told) > limits.max_bytes:
        raise Rejected(413, f"the body has more than {limits.max_bytes:,} bytes")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        request.scope[PENDING] = request.scope.get(PENDING, 0) + len(chunk)
        service.num_pending_bytes += len(chunk)
        if service.num_pending_bytes > limits.max_pending_bytes:
            raise QueueFull
        if len(body) > limits.max_bytes:
            raise Rejected(413, f"the body has more than {limits.max_bytes:,} bytes")
    return bytes(body)


async def _files_of_form(request: Request, service: "Service") -> list[tuple[str, bytes]]:
    body, limits = await _body(request, service), service.limits

    async def again() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        # The form is parsed from what was counted.
        async with Request(request.scope, again).form(
            max_files=limits.max_images, max_fields=limits.max_images
        ) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            found = [(_as_text(file.filename or f"image {row}"), await file.read()) for row, file in enumerate(files)]
    except (MultiPartException, HTTPException) as error:
        reason = getattr(error, "message", None) or getattr(error, "detail", None) or str(error)
        raise Rejected(413 if "Too many" in str(reason) else 400, f"the form cannot be read: {reason}") from error
    except Exception as error:  # the parser's, on a stranger's bytes
        raise Rejected(400, "the form cannot be read") from error
    if not found:
        raise Rejected(422, "the form has no file")
    return found


def _as_text(name: str) -> str:
    """A file's name without what is no letter of any alphabet."""
    return name.encode("utf-8", "replace").decode()


def _files_of_json(body: bytes, limits: Limits) -> list[tuple[str, bytes]]:
    try:
        encoded = Encoded.model_validate_json(body)
    except ValueError as error:
        raise Rejected(422, 'expected JSON such as {"images": ["<base64>"]}') from error
    if len(encoded.images) > limits.max_images:
        raise Rejected(413, f"more than {limits.max_images} images")
    return [(f"image {row}", _from_base64(text)) for row, text in enumerate(encoded.images)]


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.rpartition("base64,")[2], validate=True)  # also of a data URL
    except (binascii.Error, ValueError) as error:
        raise Rejected(422, "an image is not in base64") from error


def _tensors_of_json(body: bytes, service: "Service") -> tuple[InferRequest, list[bytes] | Tensor]:
    try:
        request = InferRequest.model_validate_json(body)
    except ValueError as error:
        raise Rejected(422, "expected a request of the Open Inference Protocol") from error
    if len(request.inputs) != 1:
        raise Rejected(422, "expected one input: image or images")
    (tensor,) = request.inputs
    count = tensor.shape[0] if tensor.shape else 0
    if not 0 < count <= service.limits.max_images:
        raise Rejected(413 if count > 0 else 422, f"expected 1 to {service.limits.max_images} images")
    if tensor.datatype == "BYTES" and tensor.name == "image":
        if len(tensor.shape) != 1 or len(tensor.data) != count or not all(isinstance(one, str) for one in tensor.data):
            raise Rejected(422, "expected as many texts in base64 as the shape says")
        return request, [_from_base64(text) for text in tensor.data]
    wanted = [count, *service.predictor.data_config["input_size"]]
    if tensor.datatype != "FP32" or tensor.name != "images" or tensor.shape != wanted:
        raise Rejected(422, f"expected image, BYTES [n], or images, FP32 [n, {', '.join(map(str, wanted[1:]))}]")
    return request, _as_tensor(tensor)


def _flatten(values: Sequence[Any], size: int) -> list[Any]:
    """Nested lists as one, at any depth that a tensor has; no further where there are more than `size` values."""
    flat = list(values)
    for _ in range(4):
        if len(flat) > size or not any(isinstance(value, list) for value in flat):
            break
        flat = [inner for value in flat for inner in (value if isinstance(value, list) else [value])]
    return flat


def _as_tensor(tensor: Tensors) -> Tensor:
    size = torch.Size(tensor.shape).numel()
    flat = _flatten(tensor.data, size)
    if len(flat) != size or not all(type(value) in (int, float) for value in flat):
        raise Rejected(422, f"expected {size:,} numbers")
    try:
        images = torch.tensor(flat, dtype=torch.float32).reshape(tensor.shape)
    except (OverflowError, RuntimeError) as error:
        raise Rejected(422, "the images have values that are no float32") from error
    if not torch.isfinite(images).all():
        raise Rejected(422, "the images have values that are not finite")
    return images
