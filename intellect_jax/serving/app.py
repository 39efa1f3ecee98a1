"""The HTTP side: routes, streams, errors, in the forms of OpenAI's API."""

import asyncio
from collections.abc import AsyncIterator, Callable
import dataclasses
import json
import time
from typing import Any
import uuid

from starlette.applications import (  # pyright: ignore[reportMissingImports]
  Starlette,
)
from starlette.requests import (  # pyright: ignore[reportMissingImports]
  ClientDisconnect,
)
from starlette.requests import (  # pyright: ignore[reportMissingImports]
  Request as HttpRequest,
)
from starlette.responses import (  # pyright: ignore[reportMissingImports]
  JSONResponse,
  Response,
  StreamingResponse,
)
from starlette.routing import Route  # pyright: ignore[reportMissingImports]

from intellect_jax.errors import UserError
from intellect_jax.inference.engine import Request
from intellect_jax.inference.loading import Model
from intellect_jax.inference.text import answer
from intellect_jax.serving.requests import Asked, read_chat, read_completion
from intellect_jax.serving.worker import Worker

_MOST_BYTES = 4 << 20  # of a body
_DONE = "data: [DONE]\n\n"


@dataclasses.dataclass(frozen=True)
class _Form:
  """How one of the two endpoints writes what it answers."""

  prefix: str  # of ids
  kind: str  # "object" of a whole answer
  piece_kind: str  # … and of a piece of a stream
  choice: Callable[[str], dict[str, Any]]  # a whole text
  piece: Callable[[str], dict[str, Any]]
  first: dict[str, Any] | None  # a piece before all others


_COMPLETION = _Form(
  "cmpl",
  "text_completion",
  "text_completion",
  lambda text: dict(text=text, logprobs=None),
  lambda text: dict(text=text, logprobs=None),
  None,
)
_CHAT = _Form(
  "chatcmpl",
  "chat.completion",
  "chat.completion.chunk",
  lambda text: dict(
    message=dict(role="assistant", content=text, refusal=None), logprobs=None
  ),
  lambda text: dict(delta=dict(content=text) if text else {}, logprobs=None),
  dict(delta=dict(role="assistant", content=""), logprobs=None),
)


def make_app(model: Model, worker: Worker, most_waiting: int) -> Starlette:
  """The application.

  Args:
    model: whose words they are.
    worker: who writes them.
    most_waiting: choices that are being written or wait at once; who comes
      beyond them is told to come later (status 429).
  """
  service = _Service(model, worker, most_waiting)
  return Starlette(
    routes=[
      Route("/health", service.health),
      Route("/v1/models", service.models),
      Route("/v1/completions", service.completions, methods=["POST"]),
      Route("/v1/chat/completions", service.chat, methods=["POST"]),
    ],
    exception_handlers={
      UserError: lambda http, error: _error(400, str(error)),
      404: lambda http, error: _error(
        404, f"There is no {http.url.path} here."
      ),
      405: lambda http, error: _error(405, "This wants another method."),
      _Refused: _refused,
    },
  )


class _Refused(Exception):
  def __init__(self, status: int, message: str):
    super().__init__(message)
    self.status = status


def _refused(http: HttpRequest, error: Exception) -> Response:
  assert isinstance(error, _Refused)
  return _error(error.status, str(error))


class _Service:
  """One model's endpoints."""

  def __init__(self, model: Model, worker: Worker, most_waiting: int):
    self._model, self._worker = model, worker
    self._free = most_waiting  # choices that may still come
    self._started = int(time.time())

  async def health(self, http: HttpRequest) -> Response:
    return Response(status_code=200 if self._worker.alive else 503)

  async def models(self, http: HttpRequest) -> Response:
    own = dict(
      id=self._model.name,
      object="model",
      created=self._started,
      owned_by="intellect_jax",
      max_model_len=self._model.context,
    )
    return JSONResponse(dict(object="list", data=[own]))

  async def completions(self, http: HttpRequest) -> Response:
    asked = read_completion(await _body(http), self._model)
    return await self._answer(http, asked, _COMPLETION, frozenset())

  async def chat(self, http: HttpRequest) -> Response:
    asked = read_chat(await _body(http), self._model)
    return await self._answer(http, asked, _CHAT, self._model.template.ends)

  async def _answer(
    self, http: HttpRequest, asked: Asked, form: _Form, stops: frozenset[int]
  ) -> Response:
    if not self._worker.alive:
      raise _Refused(503, "The engine has failed; see the server's log.")
    if len(asked.prompts) > self._free:
      raise _Refused(429, "There is too much to do. Come again later.")
    answers = _Answers(self._model, self._worker, asked, stops)
    pieces = self._counted(answers, len(asked.prompts))
    head = dict(
      id=f"{form.prefix}-{uuid.uuid4().hex}",
      created=int(time.time()),
      model=self._model.name,
    )
    if asked.stream:
      return StreamingResponse(
        _stream(pieces, answers, asked, form, head),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache"},
      )
    writing = asyncio.ensure_future(_whole(pieces, answers, form, head))
    gone = asyncio.ensure_future(_disconnected(http))
    await asyncio.wait({writing, gone}, return_when=asyncio.FIRST_COMPLETED)
    for task in (writing, gone):
      task.cancel()
    return await writing if writing.done() else Response(status_code=499)

  async def _counted(
    self, answers: "_Answers", choices: int
  ) -> AsyncIterator[tuple[int, str, str | None]]:
    """The pieces; whoever leaves early ends what is being written."""
    self._free -= choices
    try:
      async for piece in answers.pieces():
        yield piece
    finally:
      answers.cancel()
      self._free += choices


class _Answers:
  """The choices of a request, as they are being written."""

  def __init__(
    self, model: Model, worker: Worker, asked: Asked, stops: frozenset[int]
  ):
    """Raises UserError if the engine cannot answer."""
    self._worker = worker
    self._news: asyncio.Queue[tuple[int, str, str | None]] = asyncio.Queue()
    self._loop = asyncio.get_running_loop()
    self.prompt_tokens = sum(map(len, asked.prompts))
    self.tokens = 0
    self._requests = [
      self._request(model, asked, stops, number)
      for number in range(len(asked.prompts))
    ]
    for request in self._requests:
      worker.engine.check(request)

  def _request(
    self, model: Model, asked: Asked, stops: frozenset[int], number: int
  ) -> Request:
    """The engine's request of a choice; it calls from the engine's thread."""

    def tell(*news: Any) -> None:
      self._loop.call_soon_threadsafe(self._news.put_nowait, (number, *news))

    request = answer(
      model,
      asked.prompts[number],
      asked.most,
      asked.sampling[number],
      asked.stop_words,
      stops,
      show=lambda new: tell(new, None),
      done=lambda text, why: tell("", why),
    )
    take = request.take

    def counted(token: int, logprob: float) -> bool:
      self.tokens += 1
      return take(token, logprob)

    request.take = counted
    return request

  async def pieces(self) -> AsyncIterator[tuple[int, str, str | None]]:
    """Number of a choice, new text, and why it ends there, if it does."""
    for request in self._requests:
      self._worker.add(request)
    left = len(self._requests)
    while left:
      piece = await self._news.get()
      left -= piece[2] is not None
      yield piece

  def cancel(self) -> None:
    for request in self._requests:
      self._worker.cancel(request)

  def usage(self) -> dict[str, int]:
    return dict(
      prompt_tokens=self.prompt_tokens,
      completion_tokens=self.tokens,
      total_tokens=self.prompt_tokens + self.tokens,
    )


async def _whole(pieces, answers: _Answers, form: _Form, head) -> Response:
  texts, whys = {}, {}
  async for number, new, why in pieces:
    texts[number] = texts.get(number, "") + new
    whys[number] = why
  if "cancelled" in whys.values():
    raise _Refused(503, "The engine has failed; see the server's log.")
  choices = [
    dict(index=n, finish_reason=whys[n], **form.choice(texts[n]))
    for n in sorted(texts)
  ]
  return JSONResponse(
    dict(head, object=form.kind, choices=choices, usage=answers.usage())
  )


async def _stream(
  pieces, answers: _Answers, asked: Asked, form: _Form, head
) -> AsyncIterator[str]:
  def event(choices: list[dict[str, Any]], **more: Any) -> str:
    content = dict(head, object=form.piece_kind, choices=choices, **more)
    return f"data: {json.dumps(content)}\n\n"

  if form.first:
    for n in range(len(asked.prompts)):
      yield event([dict(index=n, finish_reason=None, **form.first)])
  async for number, new, why in pieces:
    if why == "cancelled":
      message = "The engine has failed; see the server's log."
      yield f"data: {json.dumps(_error_body(503, message))}\n\n"
      return
    yield event([dict(index=number, finish_reason=why, **form.piece(new))])
  if asked.usage:
    yield event([], usage=answers.usage())
  yield _DONE


async def _body(http: HttpRequest) -> bytes:
  """The body, if it is not too long."""
  body = bytearray()
  async for chunk in http.stream():
    body += chunk
    if len(body) > _MOST_BYTES:
      raise _Refused(413, f"A body may have {_MOST_BYTES} bytes.")
  return bytes(body)


async def _disconnected(http: HttpRequest) -> None:
  """Waits until the client has gone."""
  while True:
    try:
      message = await http.receive()
    except ClientDisconnect:
      return
    if message["type"] == "http.disconnect":
      return


def _error(status: int, message: str) -> Response:
  return JSONResponse(_error_body(status, message), status_code=status)


def _error_body(status: int, message: str) -> dict[str, Any]:
  kind = "invalid_request_error" if status < 500 else "server_error"
  return dict(error=dict(message=message, type=kind, param=None, code=None))
