"""The body of a typed request: JSON, the bytes of an image, or a form.

With an image that is sent raw the other fields stand in the query, else in the body too. Knows
media types. Knows nothing of what the fields mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import msgspec
from msgspec import Meta, inspect
from starlette.requests import Request

from paligemma_edge.runtime.images.formats import format_of
from paligemma_edge.runtime.serve.errors import ApiError
from paligemma_edge.runtime.serve.image_body import image_of_text
from paligemma_edge.runtime.serve.json_body import decode_json
from paligemma_edge.runtime.serve.multipart_body import MEDIA_TYPE as FORM
from paligemma_edge.runtime.serve.multipart_body import read_form
from paligemma_edge.runtime.serve.typed_wire import ImageReference, TypedOptions

JSON = "application/json"
# What clients say of bytes whose type they do not know; the last is what curl --data-binary says.
_UNNAMED = ("", "application/octet-stream", "application/x-www-form-urlencoded")
_IMAGE, _IMAGE_ID = "image", "image_id"

ImageText = Annotated[
    str,
    Meta(
        description="the bytes of a file in base64, or a data: URI of it",
        extra_json_schema={"contentEncoding": "base64"},
    ),
]
ImageFile = Annotated[str, Meta(description="the file", extra_json_schema={"format": "binary"})]
ImageId = Annotated[
    str | None, Meta(description="of an image that was sent before, in place of its bytes")
]


@dataclass(frozen=True, eq=False)
class TypedBody:
    """What was sent: the fields, and an image as a text, as bytes or by its id."""

    options: TypedOptions
    image: str | bytes | ImageReference

    @property
    def size(self) -> int:
        """Bytes of the image, as it was sent."""
        return 0 if isinstance(self.image, ImageReference) else len(self.image)

    def encoded(self) -> bytes:
        """The bytes of the image's file; ApiError where a text stands for none."""
        assert not isinstance(self.image, ImageReference), "it was sent before"
        return image_of_text(self.image, _IMAGE) if isinstance(self.image, str) else self.image


@dataclass(frozen=True, eq=False)
class BodyReader:
    """Reads the bodies of one task's requests."""

    options: type[TypedOptions]

    @cached_property
    def json_type(self) -> type[TypedOptions]:
        """What a body in JSON holds."""
        image: Any = ImageText | ImageReference
        return self._with("Request", [(_IMAGE, image)])

    @cached_property
    def form_type(self) -> type[TypedOptions]:
        """What a form holds."""
        image: Any = ImageFile | msgspec.UnsetType
        return self._with("Form", [(_IMAGE, image, msgspec.UNSET), (_IMAGE_ID, ImageId, None)])

    @cached_property
    def query_type(self) -> type[TypedOptions]:
        """What the query of an image that is sent raw holds."""
        return self._with("Query", [(_IMAGE_ID, ImageId, None)])

    async def read(self, request: Request) -> TypedBody:
        """Read the body.

        Args:
            request: whose body was not read yet.

        Returns:
            The fields, all checked, and the image, not decoded.

        Raises:
            ApiError: 400, 413 or 415; the body, or a field of it, cannot be used.
        """
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise _unsupported("the body is compressed, wanted it as it is")
        content_type = request.headers.get("content-type", "")
        media_type = content_type.partition(";")[0].strip().lower()
        if media_type == JSON:
            _refuse_query(request, "JSON")
            options = decode_json(await request.body(), self._json_decoder)
            return TypedBody(options, getattr(options, _IMAGE))
        if media_type == FORM:
            _refuse_query(request, "a form")
            form = await read_form(content_type, request.stream())
            return self._of_fields(form.fields, form.image)
        if media_type.startswith("image/") or media_type in _UNNAMED:
            body = await request.body()
            if media_type == _UNNAMED[-1] and body and format_of(body) is None:
                raise _unsupported("the body is a form in the style of a query")
            return self._of_fields(_query(request), body or None)
        raise _unsupported(f"the body is {media_type[:60]!r}")

    def _of_fields(self, fields: Mapping[str, list[str]], image: bytes | None) -> TypedBody:
        if _IMAGE in fields:
            raise ApiError(
                400,
                "image is a text, wanted the file itself as the part or the body; JSON takes it "
                "in base64",
                code="field_invalid",
                param=_IMAGE,
            )
        values = {name: self._value(name, texts) for name, texts in fields.items()}
        options = decode_json(msgspec.json.encode(values), self._query_decoder)
        image_id: str | None = getattr(options, _IMAGE_ID)
        if (image is None) == (image_id is None):
            found = "no image" if image is None else "an image and an image_id"
            raise ApiError(
                400,
                f"the request has {found}, wanted one of them: the bytes of a JPEG, PNG, WebP, "
                "BMP, GIF, TIFF or AVIF, or the id of an image that was sent before",
                code="image_required",
                param=_IMAGE,
            )
        return TypedBody(options, ImageReference(image_id or "") if image is None else image)

    def _value(self, name: str, texts: list[str]) -> str | list[str]:
        if name in self._lists:
            return texts
        if len(texts) > 1:
            raise ApiError(
                400,
                f"{name[:60]} is given {len(texts)} times, wanted it once",
                code="field_repeated",
                param=name[:60],
            )
        return texts[0]

    @cached_property
    def _json_decoder(self) -> msgspec.json.Decoder[TypedOptions]:
        return msgspec.json.Decoder(self.json_type)

    @cached_property
    def _query_decoder(self) -> msgspec.json.Decoder[TypedOptions]:
        """Texts become numbers and flags, where such are wanted."""
        return msgspec.json.Decoder(self.query_type, strict=False)

    @cached_property
    def _lists(self) -> frozenset[str]:
        """Names of the fields that may be given more than once."""
        kind = inspect.type_info(self.query_type)
        assert isinstance(kind, inspect.StructType)
        return frozenset(one.name for one in kind.fields if _is_list(one.type))

    def _with(self, suffix: str, fields: list[Any]) -> type[TypedOptions]:
        """The task's options and a place for the image."""
        made: Any = msgspec.defstruct(
            self.options.__name__.removesuffix("Options") + suffix,
            fields,
            bases=(self.options,),
            kw_only=True,
            forbid_unknown_fields=True,
        )
        kind: type[TypedOptions] = made
        kind.__doc__ = self.options.__doc__
        return kind


def _is_list(kind: inspect.Type) -> bool:
    if isinstance(kind, inspect.Metadata):
        return _is_list(kind.type)
    if isinstance(kind, inspect.UnionType):
        return any(map(_is_list, kind.types))
    return isinstance(kind, inspect.ListType)


def _query(request: Request) -> dict[str, list[str]]:
    query = request.query_params
    return {name: query.getlist(name) for name in query}


def _refuse_query(request: Request, body: str) -> None:
    if request.url.query:
        raise ApiError(
            400,
            f"the address has a query and the body is {body}; put all fields into the body",
            code="query_unexpected",
        )


def _unsupported(found: str) -> ApiError:
    return ApiError(
        415,
        f"{found}, wanted application/json, multipart/form-data, or the bytes of an image with "
        "a content-type such as image/jpeg",
        code="unsupported_media_type",
    )
