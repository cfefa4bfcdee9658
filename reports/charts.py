"""Charts as inline SVG, made of text alone: the same bytes every time, the page's colours, light and dark.

No element has an id, so that charts on one page cannot touch each other. Each begins with a title that says in words
what it shows.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 14, 46
COLOURS = 6  # classes c0 to c5 of the page's style
LETTER = 7.5  # pixels of a letter of a tick, on average
MOST_LEFT = 340  # pixels of the names of bars
DEPTH = "context depth, tokens"
SMALL_DEPTHS = (0, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Series:
    """Points of one kind.

    Attributes:
        mark: "measured" (filled circles, solid line), "published" (hollow diamonds, no line), "projection" (dashes).
        colour: number of a class, the same for one device throughout a page.
        points: x, y and what the point is, in words.
    """

    name: str
    mark: str
    colour: int
    points: Sequence[tuple[float, float, str]]


@dataclass(frozen=True)
class Axis:
    """From data to pixels, and where its ticks are."""

    label: str
    low: float
    high: float
    first: float
    last: float
    log: bool = False
    shown: Callable[[float], str] = lambda value: f"{value:g}"

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = (math.log10(max(part, 1e-12)) for part in (value, low, high))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.first + share * (self.last - self.first)

    @property
    def ticks(self) -> list[float]:
        if not self.log:
            return _round_steps(self.low, self.high)
        lowest, highest = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        factors = (1,) if highest - lowest > 2 else (1, 2, 5)
        every = [factor * 10.0**power for power in range(lowest, highest + 1) for factor in factors]
        return [tick for tick in every if self.low * 0.999 <= tick <= self.high * 1.001]


def _round_steps(low: float, high: float, most: int = 6) -> list[float]:
    span = (high - low) or 1.0
    step = 10.0 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= most)
    return [low + step * at for at in range(int(span / step + 1e-9) + 1)]


def axis_for(values: Iterable[float], label: str, first: float, last: float, log: bool, zero: bool = True) -> Axis:
    """An axis that holds all values with some room."""
    found = list(values)
    low, high = min(found), max(found)
    if log:
        return Axis(label, low / 1.3, high * 1.3, first, last, True, short)
    top = high * 1.08 if high > 0 else 1.0
    steps = _round_steps(0.0, top)
    step = steps[1] - steps[0] if len(steps) > 1 else top
    return Axis(label, 0.0 if zero else low, math.ceil(top / step) * step, first, last, False, short)


def short(value: float) -> str:
    """Three digits, thousands as K, millions as M."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def by_depth(title: str, series: Sequence[Series], y_label: str, log: bool = False, x_label: str = DEPTH) -> str:
    """Lines over context depth, or over another number of tokens."""
    most = max([depth for one in series for depth, _, _ in one.points] + [1024])
    scale = 1024 if most > 4096 else 256
    marks = [0, 4096, 16384, 65536, 262144] if most > 32768 else [0, 1024, 4096, 16384] if most > 4096 else SMALL_DEPTHS
    ticks = [(mark, f"{mark // 1024}K" if mark >= 1024 else str(mark)) for mark in marks if mark <= most * 1.01]
    return _lines(title, series, lambda depth: math.log2(depth / scale + 1), ticks, most, (x_label, y_label), log)


def by_batch(title: str, series: Sequence[Series], y_label: str) -> str:
    """Lines over the number of sequences at once, each doubling as far as the next."""
    most = max([batch for one in series for batch, _, _ in one.points] + [2])
    ticks = [(2**power, str(2**power)) for power in range(math.floor(math.log2(most)) + 1)]
    return _lines(title, series, math.log2, ticks, most, ("sequences at once", y_label), False)


def by_length(title: str, series: Sequence[Series], y_label: str) -> str:
    """Lines over tokens that a step with drafts emits."""
    ticks = [(length, f"{length:g}") for length in (1, 2, 3, 4)]
    labels = ("tokens a step: accepted drafts and one more", y_label)
    return _lines(title, series, lambda length: length - 1, ticks, 4, labels, False)


def _lines(
    title: str,
    series: Sequence[Series],
    place: Callable[[float], float],
    marks: Sequence[tuple[float, str]],
    most: float,
    labels: tuple[str, str],
    log: bool,
) -> str:
    points = [point for one in series for point in one.points]
    if not points:
        return ""
    x = Axis(labels[0], 0, place(most), LEFT + 8, WIDTH - RIGHT - 8)
    y = axis_for((rate for _, rate, _ in points), labels[1], HEIGHT - BOTTOM, TOP, log)
    parts = [*_grid(y), *_x_axis([(x(place(mark)), said) for mark, said in marks], x.label)]
    for one in series:
        parts += _drawn(one, [(x(place(at)), y(rate), said) for at, rate, said in sorted(one.points)])
    return _figure(title, parts, _legend(series))


def roofline(title: str, series: Sequence[Series], gb_per_s: float, roofs: Sequence[tuple[str, float]]) -> str:
    """Rate over arithmetic intensity, both logarithmic, below the ceilings of memory and of products.

    Args:
        series: points of operations a byte, TFLOP/s, and what each is.
        roofs: name and TFLOP/s of each kind of product.
    """
    points = [point for one in series for point in one.points]
    if not points:
        return ""
    top = max(rate for _, rate in roofs)
    x = Axis("operations a byte", min(p[0] for p in points) / 1.5, max(max(p[0] for p in points) * 1.5,
             top * 1e3 / gb_per_s * 3), LEFT, WIDTH - RIGHT, True, short)  # fmt: skip
    low = min(min(p[1] for p in points) / 2, x.low * gb_per_s / 1e3)
    y = Axis("TFLOP/s", low, top * 2, HEIGHT - BOTTOM, TOP, True, short)
    ticks = [(x(tick), short(tick)) for tick in x.ticks]
    parts = [*_grid(y), *_x_axis(ticks, x.label)]
    for at, (name, rate) in enumerate(roofs):
        corner = rate * 1e3 / gb_per_s
        start = max(x.low, y.low * 1e3 / gb_per_s)
        corners = ((start, start * gb_per_s / 1e3), (corner, rate), (x.high, rate))
        path = "M" + "L".join(f"{_n(x(a))} {_n(y(b))}" for a, b in corners)
        parts.append(f'<path class="roof" d="{path}"/>')
        label = f"{name} {rate:.0f} TFLOP/s" + (f", {gb_per_s:.0f} GB/s" if at == 0 else "")
        down = -5 if at == 0 else 14
        parts.append(
            f'<text class="label" x="{WIDTH - RIGHT}" y="{_n(y(rate) + down)}" text-anchor="end">{escape(label)}</text>'
        )
    for one in series:
        parts += _drawn(one, [(x(a), y(b), said) for a, b, said in one.points], line=False)
    return _figure(title, parts, _legend(series))


@dataclass(frozen=True)
class Bar:
    """One bar of parts on end: name and size of each, and what the bar must not exceed."""

    name: str
    parts: Sequence[tuple[str, float]]
    limit: float | None = None
    note: str = ""


def bars(title: str, rows: Sequence[Bar], unit: str, shown: Callable[[float], str] = short) -> str:
    """Horizontal bars of stacked parts; a limit is a line across its bar."""
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name, _ in row.parts))
    most = max([sum(size for _, size in row.parts) for row in rows] + [row.limit or 0.0 for row in rows])
    left, step = min(max(max(len(row.name) for row in rows) * LETTER + 16, 120), MOST_LEFT), 34
    height = TOP + step * len(rows) + BOTTOM
    x = axis_for([most], unit, left, WIDTH - 70, False)
    parts = []
    for tick in x.ticks:
        parts.append(f'<path class="grid" d="M{_n(x(tick))} {TOP}V{height - BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{_n(x(tick))}" y="{height - BOTTOM + 16}" text-anchor="middle">'
                     f"{escape(shown(tick))}</text>")  # fmt: skip
    for at, row in enumerate(rows):
        top, total = TOP + step * at + 6, 0.0
        said = row.name if len(row.name) * LETTER + 16 <= MOST_LEFT else f"{row.name[:40]}..."
        parts.append(f'<text class="tick" x="{_n(left - 8)}" y="{top + 15}" text-anchor="end">{escape(said)}</text>')
        for name, size in row.parts:
            wide = max(x(total + size) - x(total), 0.0)
            said = f"{row.name}: {name} {shown(size)} {unit}"
            parts.append(f'<rect class="fill c{names.index(name) % COLOURS}" x="{_n(x(total))}" y="{top}" '
                         f'width="{_n(wide)}" height="{step - 12}"><title>{escape(said)}</title></rect>')  # fmt: skip
            total += size
        if row.limit is not None:
            parts.append(f'<path class="limit" d="M{_n(x(row.limit))} {top - 4}v{step - 4}"/>')
        parts.append(f'<text class="tick" x="{_n(x(max(total, row.limit or 0.0)) + 6)}" y="{top + 15}">'
                     f"{escape(row.note or shown(total))}</text>")  # fmt: skip
    middle = _n((left + WIDTH - 70) / 2)
    parts.append(f'<text class="label" x="{middle}" y="{height - 8}" text-anchor="middle">{escape(unit)}</text>')
    legend = _swatches([(name, f"fill c{at % COLOURS}") for at, name in enumerate(names)]) if len(names) > 1 else ""
    return _figure(title, parts, legend, height)


def _drawn(one: Series, placed: Sequence[tuple[float, float, str]], line: bool = True) -> list[str]:
    colour = f"c{one.colour % COLOURS}"
    parts = []
    if line and one.mark != "published" and len(placed) > 1:
        path = "L".join(f"{_n(a)} {_n(b)}" for a, b, _ in placed)
        dashed = " dashed" if one.mark == "projection" else ""
        parts.append(f'<path class="line {colour}{dashed}" d="M{path}"/>')
    for a, b, said in placed:
        title = f"<title>{escape(said)}</title>"
        if one.mark == "published":
            corner = f"M{_n(a)} {_n(b - 6)}L{_n(a + 6)} {_n(b)}L{_n(a)} {_n(b + 6)}L{_n(a - 6)} {_n(b)}Z"
            parts.append(f'<path class="hollow {colour}" d="{corner}">{title}</path>')
        else:
            kind = "hollow" if one.mark == "projection" else "fill"
            size = 3 if one.mark == "projection" else 4.5
            parts.append(f'<circle class="{kind} {colour}" cx="{_n(a)}" cy="{_n(b)}" r="{size}">{title}</circle>')
    return parts


def _grid(y: Axis) -> list[str]:
    parts = []
    for tick in y.ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {_n(y(tick))}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 7}" y="{_n(y(tick) + 4)}" text-anchor="end">{escape(y.shown(tick))}</text>'
        )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="translate(13 {_n(middle)}) rotate(-90)" text-anchor="middle"'
    parts.append(f'<text class="label" {turned}>{escape(y.label)}</text>')
    return parts


def _x_axis(ticks: Sequence[tuple[float, str]], label: str) -> list[str]:
    parts = [
        f'<text class="tick" x="{_n(at)}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{escape(text)}</text>'
        for at, text in ticks
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [
        *parts,
        f'<text class="label" x="{_n(middle)}" y="{HEIGHT - 8}" text-anchor="middle">{escape(label)}</text>',
    ]


def _legend(series: Sequence[Series]) -> str:
    kinds = {"measured": "fill", "published": "hollow", "projection": "hollow"}
    return _swatches(
        [(f"{one.name} ({one.mark})", f"{kinds[one.mark]} c{one.colour % COLOURS} {one.mark}") for one in series]
    )


def _swatches(named: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<li><svg viewBox="0 0 14 14" aria-hidden="true">{_swatch(kind)}</svg>{escape(name)}</li>'
                    for name, kind in named)  # fmt: skip
    return f'<ul class="legend">{items}</ul>'


def _swatch(kind: str) -> str:
    if "published" in kind:
        return f'<path class="{kind}" d="M7 1L13 7L7 13L1 7Z"/>'
    if "projection" in kind or "measured" in kind:
        return f'<circle class="{kind}" cx="7" cy="7" r="5"/>'
    return f'<rect class="{kind}" x="1" y="1" width="12" height="12"/>'


def _figure(title: str, parts: Sequence[str], legend: str, height: float = HEIGHT) -> str:
    svg = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {_n(height)}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
    return f'<figure><figcaption>{escape(title)}</figcaption><div class="scroll">{svg}</div>{legend}</figure>'


def _n(value: float) -> str:
    """One decimal, without a tail of zeros: enough for a pixel, and the same on every machine."""
    return f"{value:.1f}".removesuffix(".0")
