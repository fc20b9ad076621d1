"""The page: escaped, on its own, bounded, and there even where everything is missing."""

import copy
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from typing import Any, cast

import numpy as np
import pytest

from ssl_ray.tracking import History, Point
from ssl_ray.trained.report.gather import Subject
from ssl_ray.trained.report.page import MOST_BYTES, Reported, page
from ssl_ray.trained.report.pictures import picture, sheet
from ssl_ray.trained.report.seen import Asked, Plotted, Seen, Table
from tests.trained.past import past

EVIL = "<script>alert('x')</script>&\"</title>"
# What makes a browser fetch something.
FETCHING = {"src", "href", "srcset", "data", "poster", "action", "xlink:href", "background"}


class Seeker(HTMLParser):
    """Collects elements, what they would fetch, and the text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in FETCHING]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(html: str) -> Seeker:
    seeker = Seeker()
    seeker.feed(html)
    return seeker


def curve(*values: float) -> list[Point]:
    return [Point(10 * i, v, float(i)) for i, v in enumerate(values)]


def reported(
    name: str,
    *,
    curves: Mapping[str, Sequence[Point]] | None = None,
    values: Mapping[str, str] | None = None,
    seen: Seen | None = None,
    notes: Sequence[str] = (),
    **run: Any,
) -> Reported:
    curves = curves or {}
    run.setdefault("metrics", {k: v[-1].value for k, v in curves.items()})
    # A page is made of what was gathered: it asks no store.
    subject = Subject(past(name, **run), cast(History, None), None, {}, None, values or {}, list(notes))
    return Reported(subject, curves, seen or Seen())


def pictures(count: int, side: int, caption: str) -> Seen:
    """Pictures of the kind that compress worst."""
    noise = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    shown = [picture(image, caption) for image in noise[:9]]
    table = Table(["a"] * 9, [shown] * 6, caption)
    points = [(i / count, i / count, i % 10) for i in range(count)]
    plotted = Plotted("t-SNE", caption, points, list(range(0, count, 7)), [(0.5, 0.5, 0, caption)])
    return Seen(
        views=table,
        masked=table,
        asked=[Asked(shown[0], [(p, 0.5, i % 2 == 0) for i, p in enumerate(shown[:8])])] * 8,
        neighbours_note=caption,
        maps=[plotted, plotted],
        thumbnails=sheet(list(noise), min(side, 44)),
        names=[caption] * count,
        legend=[(i, caption, 7) for i in range(10)],
    )


LOSS = {
    "train/loss": curve(3.0, 2.0, 1.0),
    "val/knn_top1": curve(0.5, 0.8),
    "perf/step_time": curve(1.0, 2.0),
}


def test_whatever_it_is_given_is_escaped() -> None:
    run = reported(
        EVIL,
        curves={f"train/{EVIL}": curve(1.0, 2.0), **LOSS},
        values={EVIL: EVIL, f"algorithm.{EVIL}": EVIL},
        seen=pictures(30, 16, EVIL),
        notes=[EVIL],
        data=EVIL,
        source=EVIL,
        status=EVIL,
        params={"name": EVIL, "training.epochs": EVIL},
        tags={"host": EVIL, "mlflow.user": EVIL, "world_size": EVIL},
    )
    plain = read(
        page([reported("x", curves=LOSS, values={"a": "b"}, seen=pictures(30, 16, "x"), notes=["n"])])
    )
    for reports in ([run], [run, reported("other", curves=LOSS)]):
        html = page(reports)
        assert "<script>alert" not in html
        assert "</title>&" not in html
        seeker = read(html)
        assert "".join(seeker.text).count(EVIL) > 5, "shown as text"
        assert set(seeker.tags) <= set(plain.tags) | {"li", "h3", "b", "wbr", "thead"}
    # Nothing that a name holds becomes an element: one chart more than `plain` has, and no script more than charts.
    assert read(page([run])).tags.count("script") == plain.tags.count("script") + 1


def test_nothing_is_fetched() -> None:
    html = page([reported("x", curves=LOSS, seen=pictures(30, 100, "x")), reported("y", curves=LOSS)])
    seeker = read(html)
    assert seeker.fetched
    assert [f for f in seeker.fetched if not f.startswith(("data:image/", "#"))] == []
    assert not re.search(r"https?://", html)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|<link|<iframe", html)
    anchors = [f[1:] for f in seeker.fetched if f.startswith("#")]
    assert set(anchors) <= set(seeker.ids), "every link and every thumbnail leads somewhere"
    assert len(seeker.ids) == len(set(seeker.ids))


def test_a_run_of_which_nothing_is_known() -> None:
    html = page([reported("bare", notes=["The data is gone."], data="", params={}, start=None, end=None)])
    text = "".join(read(html).text)
    assert "bare" in text
    assert "The data is gone." in text
    for absent in ("Curves", "Throughput", "Nearest neighbours", "Map of the features", "Evaluations"):
        assert absent not in text


def test_numbers_of_one_run() -> None:
    curves = LOSS | {
        "baseline/raw_pixels_knn_top1": curve(0.7),
        "perf/data_wait": curve(0.1, 0.3),
        "perf/images_per_second": curve(100.0, 300.0),
    }
    text = " ".join("".join(read(page([reported("x", curves=curves)])).text).split())
    for said in ("kNN top-1 80.0 %", "+30.0 points", "kNN untrained 50.0 %", "kNN on raw pixels 70.0 %"):
        assert said.replace(" ", "") in text.replace(" ", "")
    assert "waitingfordata20.0%" in text.replace(" ", "")
    # As many images took one step of each rate: the harmonic mean, not 200.
    assert "imagespersecond150" in text.replace(" ", "")


def row(html: str, name: str) -> list[str]:
    """Cells of the first row of a table that begins with `name`, the best one marked."""
    (found,) = re.findall(rf'<tr[^>]*><th scope="row">{re.escape(name)}</th>(.*?)</tr>', html, re.DOTALL)[:1]
    cells = re.findall(r"<td( class=\"best\")?>(.*?)</td>", found)
    return [text + ("*" if best else "") for best, text in cells]


def test_several_runs_side_by_side() -> None:
    a = reported(
        "a",
        curves=LOSS | {"eval/linear_top1_1pct": curve(0.9)},
        values={"training.epochs": "2", "training.seed": "0"},
    )
    b = reported(
        "b",
        curves={
            "train/loss": curve(9.0, 4.0),
            "val/knn_top1": curve(0.5, 0.6),
            "eval/linear_top1_1pct": curve(0.95),
            "eval/linear_top1_1pct_std": curve(0.004),
        },
        values={"training.epochs": "3", "training.seed": "0"},
    )
    html = page([a, b])
    assert row(html, "kNN top-1") == ["80.0 %*", "60.0 %"]
    assert row(html, "kNN untrained") == ["50.0 %", "50.0 %"]
    assert row(html, "linear_top1_1pct") == ["90.0 %", "95.0 % ± 0.4 %*"]
    assert row(html, "training.<wbr>epochs") == ["2", "3"]
    differences = html[html.index('id="differences"') : html.index('id="curves"')]
    assert "epochs" in differences
    assert "seed" not in differences
    assert html.count('<tr class="differs">') == 1
    loss = html[html.index("Training loss") :].split("</figure>")[0]
    assert 'class="line s0"' in loss
    assert 'class="line s1"' in loss


def test_runs_on_the_same_images_share_a_sheet() -> None:
    seen = pictures(30, 16, "x")
    html = page([reported("a", seen=seen), reported("b", seen=pictures(30, 16, "x"))])
    assert html.count(seen.thumbnails.uri if seen.thumbnails else "?") == 1
    assert read(html).tags.count("image") == 1


@pytest.mark.parametrize("runs", [1, 8])
def test_its_size_is_bounded(runs: int) -> None:
    """As many points and thumbnails as a page may have, and too many pictures: noise, which no codec makes small."""
    rng = np.random.default_rng(0)
    curves = {f"train/{i}": curve(*rng.normal(size=500)) for i in range(15)}
    seen = pictures(700 if runs == 1 else 120, 160 if runs == 1 else 64, "a class")
    html = page([reported(f"run {i}", curves=curves, seen=copy.deepcopy(seen)) for i in range(runs)])
    assert len(html) < MOST_BYTES
    assert "Some pictures are left out" in html
    assert "Map of the features" in html
