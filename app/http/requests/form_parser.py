"""The parser of forms: starlette's, without what it guesses.

starlette takes the text of a part as UTF-8, as the character set that the Content-Type names, or else as Latin-1, and
returns the parts so far when a body ends early. So a damaged form would ask for another picture than its sender did,
and some of Python's character sets (punycode, idna) take time that grows with the square of the length.
"""

from __future__ import annotations

import codecs

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from denoised.app.http.errors import BadRequest
from denoised.app.settings import MAX_BODY

MAX_FILES = 8
MAX_FIELDS = 64
UTF_8 = "utf-8"


class FormParser(MultiPartParser):
    """Reads one form in UTF-8, to its end."""

    def __init__(self, request: Request) -> None:
        limits = {"max_files": MAX_FILES, "max_fields": MAX_FIELDS, "max_part_size": MAX_BODY}
        super().__init__(request.headers, request.stream(), **limits)
        self._is_complete = False

    async def parse(self) -> FormData:
        """The parts of the form.

        Raises:
            BadRequest: when it cannot be read, ends before its last boundary, or is not in UTF-8.
        """
        self._check_charset()
        try:
            form = await super().parse()
        except MultiPartException as error:
            raise BadRequest(error.message) from error
        if not self._is_complete:
            await form.close()
            raise BadRequest("the form ends before its last boundary")
        return form

    def on_part_end(self) -> None:
        part = self._current_part
        if part.file is None:
            try:
                part.data.decode(UTF_8)
            except UnicodeDecodeError as error:
                raise MultiPartException(f"the part {part.field_name!r} is not valid UTF-8") from error
        super().on_part_end()

    def on_end(self) -> None:
        self._is_complete = True

    def _check_charset(self) -> None:
        _, parameters = parse_options_header(self.headers["Content-Type"])
        name = parameters.get(b"charset", b"utf-8").decode("latin-1")
        try:
            if codecs.lookup(name).name == UTF_8:
                return
        except (LookupError, ValueError):  # ValueError: a null character
            pass
        raise BadRequest(f"the charset {name[:80]!r} of the form is not supported (supported: utf-8)")
