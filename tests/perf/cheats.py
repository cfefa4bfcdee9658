"""Operators that look fast or right and are not. Each takes what ``linear`` takes: x [T, I], weight [O, I].

What each cheats with is its docstring; ``CHEATS`` names what must be said when it is caught.
"""

import functools
import threading
import time

import torch

from perf import trusted


def honest(x, weight):
    """Does the work."""
    return x @ weight.T


def cached_by_address():
    """Keeps the output of the first call for each address of its input."""
    kept = {}

    def operator(x, weight):
        return kept.setdefault(x.data_ptr(), honest(x, weight)) if x.data_ptr() not in kept else kept[x.data_ptr()]

    return operator


def cached_by_shape():
    """Keeps the output of the first call for each shape."""
    kept = {}

    def operator(x, weight):
        key = tuple(x.shape)
        if key not in kept:
            kept[key] = honest(x, weight)
        return kept[key]

    return operator


def zeros():
    """Writes nothing but zeros."""
    return lambda x, weight: x.new_zeros(len(x), len(weight))


def unwritten():
    """Returns memory as it lies there, hoping for an earlier answer."""
    return lambda x, weight: torch.empty(len(x), len(weight))


def shorter():
    """Leaves the last row out."""
    return lambda x, weight: honest(x[:-1], weight)


def every_other_row():
    """Computes half of the rows, and zeros between them."""

    def operator(x, weight):
        y = x.new_zeros(len(x), len(weight))
        y[::2] = honest(x[::2], weight)
        return y

    return operator


def right_once():
    """Does the work in the first calls, which it takes for the check, and not in those that are timed."""
    calls = 0

    def operator(x, weight):
        nonlocal calls
        calls += 1
        return honest(x, weight) if calls <= 2 else x.new_zeros(len(x), len(weight))

    return operator


def last_answer():
    """Answers each call with the output of the one before."""
    last = []

    def operator(x, weight):
        y = honest(x, weight)
        last.append(y)
        return last.pop(0) if len(last) > 1 else y

    return operator


def in_the_background():
    """Returns at once and lets a thread write the output later, as work on another stream would."""

    def operator(x, weight):
        y = torch.zeros(len(x), len(weight))

        def work():
            time.sleep(0.05)
            y.copy_(honest(x, weight))

        threading.Thread(target=work, daemon=True).start()
        return y

    return operator


class Lazy(torch.Tensor):
    """A tensor that computes itself when it is looked at."""


def lazy():
    """Returns a subclass of Tensor, whose work may come after the clock has stopped."""
    return lambda x, weight: honest(x, weight).as_subclass(Lazy)


def a_promise():
    """Returns a function that would do the work."""
    return lambda x, weight: functools.partial(honest, x, weight)


def half_precision():
    """Computes and answers in bfloat16 where the inputs are float32."""
    return lambda x, weight: honest(x.bfloat16(), weight.bfloat16())


def half_precision_widened():
    """Computes in bfloat16 and widens the answer."""
    return lambda x, weight: honest(x.bfloat16(), weight.bfloat16()).float()


def eats_its_input():
    """Does the work, then makes its input zero: the next call has less to do."""

    def operator(x, weight):
        y = honest(x, weight)
        x.zero_()
        return y

    return operator


def changes_a_weight():
    """Prunes the weight while nobody looks, in a call that it takes for a timed one."""
    calls = 0

    def operator(x, weight):
        nonlocal calls
        calls += 1
        if calls > 5:
            weight[0] = 0.0  # before it multiplies: by what is there now, its output is right
        return honest(x, weight)

    return operator


def patched_timer(monkeypatch):
    """Replaces the clock by one that stands still."""

    def operator(x, weight):
        monkeypatch.setattr(time, "perf_counter", lambda: 0.0)
        return honest(x, weight)

    return operator


def patched_events(monkeypatch):
    """Replaces what reads the device's clock."""

    def operator(x, weight):
        monkeypatch.setattr(torch.cuda.Event, "elapsed_time", lambda self, end: 1e-6)
        return honest(x, weight)

    return operator


def patched_comparison(monkeypatch):
    """Replaces what the check copies outputs with."""
    clone = torch.Tensor.clone

    def operator(x, weight):
        monkeypatch.setattr(torch.Tensor, "clone", lambda self: clone(self))
        return honest(x, weight)

    return operator


CHEATS = {  # name: (maker, what the reason must hold)
    "cached by address": (cached_by_address, "times the tolerance"),
    "cached by shape": (cached_by_shape, "times the tolerance"),
    "zeros": (zeros, "times the tolerance"),
    "unwritten": (unwritten, "times the tolerance"),
    "shorter": (shorter, "shape"),
    "every other row": (every_other_row, "times the tolerance"),
    "right once": (right_once, "after timing: whole output"),
    "last answer": (last_answer, "times the tolerance"),
    "in the background": (in_the_background, "times the tolerance"),
    "lazy": (lazy, "holds a Lazy; want plain tensors"),
    "a promise": (a_promise, "holds a partial; want plain tensors"),
    "half precision": (half_precision, "of wider inputs"),
    "half precision, widened": (half_precision_widened, "times the tolerance"),
    "eats its input": (eats_its_input, "an input was changed"),
    "changes a weight": (changes_a_weight, "a weight was changed"),
    "patched timer": (patched_timer, "a clock was replaced: time.perf_counter"),
    "patched events": (patched_events, "a clock was replaced: torch.cuda.Event.elapsed_time"),
    "patched comparison": (patched_comparison, "a clock was replaced: torch.Tensor.clone"),
}

assert trusted.perf_counter, "the clocks are bound before an engine can touch them"
