"""Continuous batching: requests join and leave between steps, prompts are taken in by chunks, several in one pass.

Requests are admitted in the order of arrival, once a row, a slot and the pages of their prompts are free. When pages
run out, kept beginnings are given up first; then the newest request is preempted: it waits, and is computed again
from all its tokens. What a request is given depends on its tokens and its seed, never on its neighbours; only a drawn
text that verifies drafts goes on otherwise, and as likely, after a preemption: its drafts are made anew.

Nothing runs by itself: whoever owns the scheduler calls ``step``, which starts work on the device and returns what
earlier steps came to.
"""

from collections import deque
from collections.abc import Iterator, Sequence

import torch

from reference.tokenizer import Tokenizer

from .executor import Executor, Prompt, Started
from .job import Job, insert
from .kv_cache import MAX_STEP, PAGE_SIZE, CacheFullError, Context, pages_for
from .prefix_cache import Kept, PrefixCache
from .request import Event, Request
from .stop_text import StopText


class Scheduler:
    """Requests in, events out.

    Args:
        token_budget: tokens that one step computes, at most: rows that decode take theirs first, prompts the rest.
        tokenizer: for text and stop strings.
        max_kept: beginnings of prompts that are kept; None: as many as there are slots beside the batch's.

    Raises:
        ValueError: a budget that a full batch leaves no page of a prompt in.
    """

    def __init__(
        self,
        executor: Executor,
        token_budget: int = 2048,
        tokenizer: Tokenizer | None = None,
        max_kept: int | None = None,
    ) -> None:
        self._longest_step = executor.deepest + 1
        least = executor.max_batch * self._longest_step + PAGE_SIZE
        if token_budget < least:
            raise ValueError(
                f"token_budget: is {token_budget}; want at least {least}: {executor.max_batch} rows of "
                f"{self._longest_step} tokens, and {PAGE_SIZE} of a prompt"
            )
        self._executor, self._cache, self._budget = executor, executor.cache, token_budget
        self._tokenizer = tokenizer
        slots = max(0, self._cache.sizes.num_slots - executor.max_batch)
        self.prefixes = PrefixCache(self._cache, slots if max_kept is None else min(max_kept, slots))
        self._waiting: list[Job] = []
        self._prompts: dict[Job, Prompt] = {}  # of those whose prompts are being taken in
        self._decoding: list[Job] = []
        self._unread: deque[tuple[int, Started]] = deque()  # with the number of the step that reads it
        self._events: list[Event] = []
        self._submitted = self._steps = 0

    @property
    def is_busy(self) -> bool:
        """Whether another step would do or tell anything."""
        return bool(self._waiting or self._prompts or self._decoding or self._events)

    def submit(self, request: Request) -> int:
        """Queue a request; its id.

        Raises:
            ValueError: it could never run; the message says what could.
        """
        length, longest = len(request.prompt_ids), self._cache.sizes.max_context
        if not 0 < length < longest:
            raise ValueError(f"prompt: has {length} tokens; want 1 to {longest - 1}, so that one more has room")
        if request.stops and self._tokenizer is None:
            raise ValueError("stops: there is no tokenizer to find them with; want one, or stop_token_ids")
        self._executor.require(request)
        most = min(request.max_new_tokens, longest - length)
        room = self._cache.sizes.num_pages * PAGE_SIZE - MAX_STEP
        if length + most > room:
            fits = f"{room - length} new tokens" if length < room else f"a prompt of {room - 1} tokens"
            raise ValueError(
                f"request: {length} tokens and {most} more need {pages_for(length + most + MAX_STEP)} pages, and the "
                f"cache has {self._cache.sizes.num_pages}; want at most {fits}"
            )
        ends = (*request.stop_token_ids, *(() if request.ignores_end else self._executor.end_ids))
        decoder = None if self._tokenizer is None else self._tokenizer.stream_decoder(skip_special=True)
        text = StopText(decoder, request.stops)
        self._submitted += 1
        self._waiting.append(Job(self._submitted, request, most, ends, text, self._executor.deepest))
        return self._submitted

    def cancel(self, request_id: int) -> bool:
        """End a request now and free all it holds; whether it was still under way. The next step tells its end."""
        for job in (*self._waiting, *self._prompts, *self._decoding):
            if job.id == request_id:
                self._events.append(job.end("cancelled"))
                self._remove(job)
                return True
        return False

    def step(self) -> list[Event]:
        """Start the next step, and tell what earlier ones came to.

        Raises:
            CacheFullError: nothing runs, and still the next request has no room: others hold the cache.
        """
        self._steps += 1
        self._admit()
        self._take_prompts_in()
        self._make_room()
        while self._unread and self._executor.wants_reading:
            self._read()
        if self._decoding:
            for started in self._executor.step():
                self._start(started, self._executor.steps_ahead)
        while self._unread and (self._unread[0][0] <= self._steps or not self._decoding):
            self._read()
        events, self._events = self._events, []
        return events

    def run(self) -> Iterator[Event]:
        """Step until every request has ended."""
        while self.is_busy:
            yield from self.step()

    def _admit(self) -> None:
        while self._waiting and len(self._prompts) + len(self._decoding) < self._executor.max_batch:
            job = self._waiting[0]
            kept = self.prefixes.find(job)
            length = job.room(self._executor.steps_ahead + 1, self._longest_step)
            if not self._frees(pages_for(length) - (len(kept.keys) if kept else 0), kept):
                if not self._prompts and not self._decoding:
                    raise CacheFullError(
                        f"cache: {pages_for(length)} pages are needed and {self._cache.num_free_pages} are free, "
                        f"{self._cache.num_free_slots} slots; want other contexts closed first"
                    )
                return
            self._waiting.pop(0)
            context = self._cache.open() if kept is None else self._cache.fork(kept.context, kept.context.length)
            self._cache.reserve(context, length)
            job.context, job.marks = context, self.prefixes.marks(job)
            if job.cached is None:
                job.cached = context.length
            self._prompts[job] = self._executor.prompt(job, kept.state if kept else None)

    def _frees(self, pages: int, used: Kept | None) -> bool:
        """Whether so many pages and a slot are free, and a page for each that decodes; gives up what is kept for it."""
        wanted = pages + len(self._prompts) + len(self._decoding)
        while self._cache.num_free_pages < wanted or not self._cache.num_free_slots:
            if not self.prefixes.drop(sparing=used):
                return False
        return True

    def _take_prompts_in(self) -> None:
        budget = self._budget - (len(self._decoding) + len(self._prompts)) * self._longest_step  # whoever joins decodes
        chunks: dict[Job, deque[int]] = {}
        for job in self._prompts:
            start = _context(job).length
            end = min(start + max(budget, 0), len(job.to_prefill))
            chunks[job] = self._ends(job, start, end)
            budget -= end - start
        while together := [(job, ends.popleft()) for job, ends in chunks.items() if ends and job in self._prompts]:
            self._run(together)
        for job, prompt in list(self._prompts.items()):
            if prompt.is_done:
                del self._prompts[job]
                insert(self._decoding, job)
                first = self._executor.join(job, prompt)
                if first is not None:
                    self._start(first, read_after=0)  # the step that is started next goes on meanwhile

    def _ends(self, job: Job, start: int, end: int) -> deque[int]:
        """Where the chunks end in which a prompt is taken in: at each mark but one that rings still hold at the end."""
        passed = [mark for mark in job.marks if mark <= end]
        if passed and end - passed[-1] <= self._cache.window_slack:
            passed.pop()
        return deque(stop for stop in (*passed, end) if stop > start)

    def _run(self, chunks: Sequence[tuple[Job, int]]) -> None:
        """Take prompts in up to these ends, in one pass; where memory ends, one by one, and whoever has none ends."""
        for job, _ in chunks:
            self._prompts[job].mark = job.marks[0] if job.marks else 0
        try:
            self._executor.take_in([(self._prompts[job], end - _context(job).length) for job, end in chunks])
        except torch.OutOfMemoryError as error:
            if len(chunks) == 1:
                self._events.append(chunks[0][0].end("error", str(error).splitlines()[0]))
                self._remove(chunks[0][0])
                return
            for job, end in chunks:
                if _context(job).length < end:
                    self._run([(job, end)])
        for job, _ in chunks:
            if job in self._prompts and job.marks and _context(job).length >= job.marks[0]:
                self.prefixes.keep(job, job.marks.pop(0), self._prompts[job].marked)

    def _make_room(self) -> None:
        """For the next step of each that decodes, the oldest first."""
        for job in list(self._decoding):
            while job in self._decoding and not self._has_room(job):
                if self.prefixes.drop():
                    continue
                if self._unread:  # it may bring ends, and whoever is preempted has to know its newest token
                    self._read()
                    continue
                self._preempt(max((*self._prompts, *self._decoding), key=lambda one: one.id))

    def _has_room(self, job: Job) -> bool:
        context = job.context
        assert context is not None, "whoever decodes has a context"
        length = job.room(1, self._longest_step)
        missing = pages_for(length) - len(context.pages)
        if missing > self._cache.num_free_pages:
            return False
        if missing > 0:
            self._cache.reserve(context, length)
            self._executor.extend(job)
        return True

    def _preempt(self, job: Job) -> None:
        self._remove(job)
        job.is_over, job.keys = False, None  # it comes back with more tokens
        job.preemptions += 1
        insert(self._waiting, job)

    def _remove(self, job: Job) -> None:
        """From wherever it is, with all it holds."""
        job.is_over = True
        if job in self._waiting:
            self._waiting.remove(job)
        elif job in self._prompts:
            del self._prompts[job]
        else:
            self._decoding.remove(job)
            self._executor.leave(job)
        if job.context is not None:
            self._cache.close(job.context)
            job.context = None

    def _start(self, started: Started, read_after: int) -> None:
        """Note what was started, and after how many more steps it is read."""
        self._unread.append((self._steps + read_after, started))
        for job in started.members:
            if job is not None:
                job.in_flight += 1

    def _read(self) -> None:
        """Wait for the oldest step that was not read, and take what it came to."""
        _, started = self._unread.popleft()
        for job, outcome in zip(started.members, started.outcomes(), strict=True):
            if job is None or job.is_over:
                continue
            assert outcome is not None, "room for every step is made before it starts, so none rests"
            job.in_flight -= 1
            event = job.take(outcome, started.num_drafts)
            self._events.append(event)
            if event.finish is not None:
                self._remove(job)


def _context(job: Job) -> Context:
    assert job.context is not None, "whoever takes a prompt in has a context"
    return job.context
