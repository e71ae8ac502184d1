"""Generated text in a server's own records, turned into events: the decoder that several dialects share.

A dialect says how one record is read into `Piece`s, and what its stream's clean end is (`Form`). The rest is the same
for all: one Finish per choice, text cut before the first stop string whatever the server leaves in it, an error in
any envelope or a body that ends too early ends in a `Failure`, impossible counts are left out so that the gateway
counts. A body is read by its own first byte as events or as JSON: errors come as JSON under 200.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from backends.core.events import Event, Finish, FinishReason, ReasoningDelta, Started, TextDelta, TokenLogprob
from backends.core.request import GenerationRequest
from backends.core.usage import ABSURD, Usage
from backends.dialects.answers import UNREADABLE, AnswerDecoder
from backends.parsing import failures, second_look
from backends.parsing.callpieces import CallIds, CallPieces
from backends.parsing.failures import Envelope
from backends.parsing.framing import EventsOrBody, JsonLines
from backends.parsing.halves import lost
from backends.parsing.snapshots import Snapshots
from backends.parsing.sse import SseEvent
from backends.parsing.stops import StopCutter

#: llama.cpp begins each but the first group of several prompts' choices with `null`.
_NOTHING = frozenset({b"", b"null"})


class Called(msgspec.Struct, frozen=True, gc=False):
    """A whole tool call; `arguments` is JSON text, `id` "" where the server gives none."""

    id: str
    name: str
    arguments: str


class Piece(msgspec.Struct, gc=False):
    """What one record says of one choice.

    Attributes:
        text: more text, or all text so far where the form is cumulative.
        finished: nothing more comes for this choice.
        reason: why it finished; None = the server does not tell, it is inferred.
        input_tokens, cached_tokens, output_tokens: totals so far; 0 = not told.
        nothing_ran: the model was not asked at all: no tokens, and that is known.
        all_logprobs: `logprobs` are those of all tokens so far.
        reasoning: more thoughts, told before the text.
        calls: further tool calls, each whole.
    """

    text: str = ""
    choice: int = 0
    finished: bool = False
    reason: FinishReason | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    model: str = ""
    reasoning: str = ""
    calls: tuple[Called, ...] = ()
    nothing_ran: bool = False
    all_logprobs: bool = False


#: A record read: its pieces; an error it carries; None = an error in the usual envelopes, or no record at all. Raises
#: ValueError or RecursionError for what is no JSON.
Reader = Callable[[bytes, GenerationRequest], Sequence[Piece] | Envelope | None]
#: The text of a record that tells of nothing but more text of choice 0; "" for any other. Raises as `Reader` does.
QuickReader = Callable[[bytes], str]


class Form(msgspec.Struct, frozen=True):
    """How a server writes its answers.

    Attributes:
        event, body: how an event of a stream and a whole answer are read.
        terminator: the clean end of a stream. `done`: `[DONE]`; `finish`: every choice has finished; `close`: the
            body's end after a whole event.
        cumulative: each event has all text so far, not only what is new.
        counted_by: each event is one token, so that events can be counted where the server does not count; `text`: each
            event with text is.
        running_counts: counts in a stream are totals; else they may be each event's own, as they turn out.
        ends: end-of-text markers that the server leaves in the text: cut like stop strings.
        lines: a stream is a JSON value a line, and a whole answer is one such line.
        quick: reads nearly all events of nearly all streams: those that `event` need not look at.
    """

    event: Reader
    body: Reader
    terminator: Literal["done", "finish", "close"] = "done"
    cumulative: bool = False
    counted_by: Literal["", "event", "text"] = ""
    running_counts: bool = True
    ends: tuple[str, ...] = ()
    lines: bool = False
    quick: QuickReader | None = None


class _Choice(msgspec.Struct):
    """What is known of one choice so far."""

    index: int
    snapshots: Snapshots | None
    cutter: StopCutter
    calls: CallPieces
    finished: bool = False
    events: int = 0
    texts: int = 0
    quick: int = 0
    logprobs: int = 0
    told: int = 0
    sum_told: int = 0
    rising: bool = True
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0

    @property
    def matched(self) -> bool:
        return bool(self.cutter.matched or (self.snapshots and self.snapshots.matched))

    def fresh(self, text: str, last: bool) -> str:
        """What of the text may be handed out now."""
        if self.snapshots is not None:
            return self.snapshots.feed(text, last=last)
        safe, hit = self.cutter.feed(text)
        return safe + self.cutter.close() if last and not hit else safe


class TextDecoder(AnswerDecoder):
    """Answers of one `Form`.

    Args:
        job: what was asked.
        form: how the server answers.
        echo: text that a whole answer begins with and that is not the model's: the prompt, "" for none.
        input_tokens, output_tokens: counts that the response's headers tell, for records that do not; 0 = not told.
    """

    def __init__(
        self, job: GenerationRequest, form: Form, *, echo: str = "", input_tokens: int = 0, output_tokens: int = 0
    ) -> None:
        super().__init__(JsonLines() if form.lines else EventsOrBody())
        self._job = job
        self._form = form
        self._echo = echo
        self._told = (input_tokens, output_tokens)
        self._choices: dict[int, _Choice] = {}
        self._ids = CallIds()
        self._nothing_ran = False
        #: Text needs no second look before its choice's end.
        self._plain = not (form.cumulative or form.ends or job.sampling.stop)
        #: The only choice, while its events may be read quickly.
        self._only: _Choice | None = None
        self._quick = form.quick

    def _stopped(self, out: list[Event], *, inside: bool) -> None:
        if self._form.terminator == "close" and not inside:
            self._end(out)
        else:
            super()._stopped(out, inside=inside)

    def _event(self, event: SseEvent, out: list[Event], *, cut: bool = False) -> None:
        data = event.data
        if (only := self._only) is not None and self._quick is not None and not event.name:
            try:
                text = self._quick(data)
            except UNREADABLE:
                text = ""
            if text:
                only.quick += 1
                self._begun = True
                out.append(TextDelta(text))
                return
        if data.lstrip().startswith(b"[DONE]"):
            if self._form.terminator == "finish":
                self._fail(failures.truncated("the stream ended before its last record"), out)
            else:
                self._end(out)
            return
        if data in _NOTHING or event.name == "ping":
            return
        if event.name == "error":
            self._error(data, out)
            return
        try:
            pieces = self._form.event(data, self._job)
        except UNREADABLE:
            again = self._again(self._form.event, data)
            if again is None:
                self._unreadable(event, out, cut=cut)
                return
            (pieces,) = again
        self._take(pieces, data, out)

    def _whole(self, body: bytes, out: list[Event]) -> None:
        try:
            pieces = self._form.body(body, self._job)
        except UNREADABLE:
            again = self._again(self._form.body, body)
            if again is None:
                self._fail(failures.protocol("not a record", body), out)
                return
            (pieces,) = again
        for piece in pieces if self._echo and isinstance(pieces, list) else ():
            piece.text = piece.text.removeprefix(self._echo)
        self._take(pieces, body, out)
        if not self._ended:
            self._end(out)

    def _again(self, read: Reader, data: bytes) -> tuple[Sequence[Piece] | Envelope | None] | None:
        """What a second, more lenient reading gives; None = the data is no record even so."""
        try:
            mended = second_look.encoded(self._values(data))
            return (read(lost(mended) if self._form.cumulative else mended, self._job),)
        except UNREADABLE:
            return None

    def _unreadable(self, event: SseEvent, out: list[Event], *, cut: bool) -> None:
        if not self._form.lines and self._apart(event, out, cut=cut):
            return
        if cut and (self._started or not self._form.lines):
            self._fail(failures.truncated("the body ended inside an event"), out)
        else:
            self._fail(failures.protocol("not a record", event.data), out)

    def _take(self, pieces: Sequence[Piece] | Envelope | None, data: bytes, out: list[Event]) -> None:
        if pieces is None:
            self._error(data, out)
        elif isinstance(pieces, Envelope):
            self._fail(failures.event(failures.told(pieces, begun=self._begun)), out)
        else:
            for piece in pieces:
                self._piece(piece, out)
                if self._ended:
                    return

    def _error(self, data: bytes, out: list[Event]) -> None:
        if failures.envelope(data).message:
            super()._error(data, out)
        else:
            self._fail(failures.protocol("not a record", data), out)

    def _piece(self, piece: Piece, out: list[Event]) -> None:
        choice = self._choices.get(piece.choice)
        if choice is None:
            choice = self._first(piece, out)
            if choice is None:
                return
        if choice.finished:
            return
        self._count(choice, piece)
        if self._plain and piece.text and not (piece.finished or piece.logprobs or piece.reasoning or piece.calls):
            self._begun = True  # nearly all records of nearly all answers
            out.append(TextDelta(piece.text, choice.index))
            return
        tokens = piece.logprobs
        if piece.all_logprobs:
            tokens, choice.logprobs = tokens[choice.logprobs :], len(tokens)
        if choice.matched:
            tokens = ()
        if piece.reasoning:
            self._begun = True
            out.append(ReasoningDelta(piece.reasoning, choice.index))
        text = choice.fresh(piece.text, piece.finished)
        if text or tokens:
            self._begun = True
            out.append(TextDelta(text, choice.index, tokens))
        for call in piece.calls:
            self._begun = True
            if one := choice.calls.feed(None, call.id, call.name, call.arguments, whole=True):
                out.append(one)
        if piece.finished:
            self._nothing_ran = self._nothing_ran or piece.nothing_ran
            self._finish(choice, piece.reason, out)
            ready = self._form.terminator == "finish" and len(self._choices) == self._job.choices
            if ready and all(one.finished for one in self._choices.values()):
                self._end(out)

    @staticmethod
    def _count(choice: _Choice, piece: Piece) -> None:
        """Keep what a record tells of its counts."""
        choice.events += 1
        if piece.text:
            choice.texts += 1
        if piece.output_tokens:
            choice.told += 1
            choice.sum_told += piece.output_tokens
            choice.rising = choice.rising and piece.output_tokens >= choice.output_tokens
            choice.output_tokens = piece.output_tokens
        if piece.input_tokens:
            choice.input_tokens = piece.input_tokens
        if piece.cached_tokens:
            choice.cached_tokens = piece.cached_tokens

    def _first(self, piece: Piece, out: list[Event]) -> _Choice | None:
        """The choice that a record is the first of."""
        if not 0 <= piece.choice < self._job.choices:
            self._fail(failures.protocol(f"choice {piece.choice} of {self._job.choices}"), out)
            return None
        if not self._started:
            self._started = True
            out.append(Started(piece.model))
        return self._open(piece.choice)

    def _open(self, index: int) -> _Choice:
        stops = (*self._job.sampling.stop, *self._form.ends)
        snapshots = Snapshots(stops) if self._form.cumulative else None
        choice = self._choices[index] = _Choice(index, snapshots, StopCutter(stops), CallPieces(index, self._ids))
        choice.input_tokens, choice.output_tokens = self._told
        if self._plain and self._job.choices == 1 and self._job.top_logprobs is None:
            self._only = choice
        return choice

    def _finish(self, choice: _Choice, said: FinishReason | None, out: list[Event]) -> None:
        choice.finished = True
        self._only = None
        reason = "stop" if choice.matched else said
        if reason is None:
            most = self._job.sampling.max_tokens
            count = self._counted(choice) or self._seen(choice)
            reason = "length" if most is not None and count >= most else "stop"
        if reason == "stop" and choice.calls.count:
            reason = "tool_calls"
        out.append(Finish(reason, choice.index))

    def _seen(self, choice: _Choice) -> int:
        """Its tokens, where each event or each text is one."""
        return choice.quick + {"": -choice.quick, "event": choice.events, "text": choice.texts}[self._form.counted_by]

    def _counted(self, choice: _Choice) -> int:
        """Its tokens. Counts that only rise, and reach at least one for each event that told one, are totals."""
        running = self._form.running_counts or choice.told <= 1 or (choice.rising and choice.output_tokens >= choice.told)
        return choice.output_tokens if running else choice.sum_told

    def _end(self, out: list[Event]) -> None:
        """The clean end: what the server left unsaid is settled."""
        if not self._choices:
            self._fail(failures.truncated("an answer without any text"), out)
            return
        if len(self._choices) < self._job.choices:
            self._fail(failures.protocol(f"{len(self._choices)} choices instead of {self._job.choices}"), out)
            return
        for choice in self._choices.values():
            if not choice.finished:
                rest = "" if choice.matched else choice.cutter.close()
                if choice.snapshots is not None:
                    rest = choice.snapshots.close()
                if rest:
                    self._begun = True
                    out.append(TextDelta(rest, choice.index))
                self._finish(choice, None, out)
        if usage := self._usage():
            out.append(usage)
        self._ended = True

    def _usage(self) -> Usage | None:
        """Outputs of all choices, each prompt once; None when one was not told, or cannot be true."""
        if self._nothing_ran:
            return Usage(0, 0)
        counts = [(choice, self._counted(choice)) for choice in self._choices.values()]
        if any(not 0 < one.input_tokens < ABSURD or not 0 < count < ABSURD for one, count in counts):
            return None
        firsts = [choice for choice in self._choices.values() if choice.index % self._job.n == 0]
        prompt = sum(choice.input_tokens for choice in firsts)
        cached = sum(choice.cached_tokens for choice in firsts)
        return Usage(prompt, sum(count for _, count in counts), cached if 0 <= cached <= prompt else 0)
