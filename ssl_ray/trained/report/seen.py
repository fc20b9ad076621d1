"""The pictures of a run's page: views, reconstructions, neighbours, map."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ssl_ray.data.pick import some_images
from ssl_ray.data.preview import views_of
from ssl_ray.data.source import Dataset
from ssl_ray.errors import UserError
from ssl_ray.models.base import BaseModel
from ssl_ray.trained.report import features as found
from ssl_ray.trained.report.gather import PREVIEW, Subject
from ssl_ray.trained.report.masked import masked
from ssl_ray.trained.report.pictures import PIXELS, Picture, Sheet, from_file, picture, sheet
from ssl_ray.training.trained import load_algorithm

_NEIGHBOURS = 8
_NAMED = 10  # classes with a colour of their own on a map
_GAP = 0.062  # between thumbnails on a map, of its side
_SHOWN = 110  # thumbnails on a map


@dataclass(frozen=True)
class Amounts:
    """How much of each a run gets. bank: images that features are taken of. mapped: points of a map."""

    bank: int
    mapped: int
    images: int = 6
    queries: int = 8

    @classmethod
    def of(cls, runs: int, images: int | None, size: int) -> "Amounts":
        """For one of so many runs on a page, with images of `size` pixels; images: the bank that the user wants."""
        bank = images or (2000 if size <= PIXELS else 500)
        return cls(
            bank, min(bank, 700 if runs == 1 else max(120, 700 // runs)), max(2, 6 // runs), max(3, 8 // runs)
        )


@dataclass(frozen=True)
class Table:
    """Rows of pictures. columns: what they are, if the same in all rows."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Picture]]
    note: str


@dataclass(frozen=True)
class Asked:
    """A query and its neighbours; right: by label, None without."""

    query: Picture
    answers: Sequence[tuple[Picture, float, bool | None]]


@dataclass(frozen=True)
class Plotted:
    """A map for the page. points: (x, y, class colour), in 0..1. shown: numbers of those with a thumbnail.

    labels: (x, y, colour, class) at the middle of each class.
    """

    name: str
    note: str
    points: Sequence[tuple[float, float, int]]
    shown: Sequence[int]
    labels: Sequence[tuple[float, float, int, str]]


@dataclass
class Seen:
    """All pictures of one run; None or empty for what could not be made."""

    views: Table | None = None
    preview: Picture | None = None
    masked: Table | None = None
    asked: Sequence[Asked] = ()
    neighbours_note: str = ""
    maps: Sequence[Plotted] = ()
    thumbnails: Sheet | None = None
    names: Sequence[str] = ()
    legend: Sequence[tuple[int, str, int]] = ()

    def thin(self) -> bool:
        """Leaves out half of the rows of views, reconstructions and neighbours. Whether there was any."""
        if not (self.views or self.masked or self.asked):
            return False
        self.views, self.masked = (_half(table) for table in (self.views, self.masked))
        self.asked = self.asked[: len(self.asked) // 2]
        return True


def _half(table: Table | None) -> Table | None:
    rows = table.rows[: len(table.rows) // 2] if table else []
    return replace(table, rows=rows) if table and rows else None


def look(subject: Subject, runs: int, images: int | None) -> Seen:
    """Makes the pictures of a run; what is missing is said in the subject's notes."""
    seen = Seen()
    dataset = subject.dataset()
    if dataset is None or subject.recipe is None:
        seen.preview = _logged_preview(subject)
        return seen
    pipeline: Any = subject.recipe.views.build()
    amounts = Amounts.of(runs, images, pipeline.eval_size)
    seed = subject.recipe.training.seed
    try:
        originals = some_images(dataset.train, amounts.images, seed)
    except (UserError, OSError) as error:
        subject.notes.append(f"The images cannot be read any more: {error}")
        seen.preview = _logged_preview(subject)
        return seen
    seen.views = _views(pipeline, originals, seed)
    checkpoint = subject.checkpoint()
    if checkpoint is None:
        return seen
    try:
        algorithm, _ = load_algorithm(subject.recipe, checkpoint)
    except (UserError, RuntimeError, OSError) as error:
        subject.notes.append(f"The checkpoint cannot be read: {error}")
        return seen
    _features(seen, subject, algorithm, dataset, amounts, pipeline.eval_size)
    _masked(seen, algorithm, pipeline, dataset, amounts, seed)
    return seen


def _views(pipeline: Any, originals: Sequence[np.ndarray], seed: int) -> Table:
    count = len(pipeline.sizes)
    names = ["original", *(["view"] if count == 1 else [f"view {i + 1}" for i in range(count)])]
    rows = []
    for i, image in enumerate(originals):
        views = views_of(pipeline, image, seed=seed, index=i)
        rows.append([picture(p, name) for p, name in zip([image, *views], names, strict=True)])
    note = "As they are drawn in the first epoch."
    if "mask" in pipeline.columns:
        note += " Hidden patches are faded."
    return Table(names, rows, note)


def _masked(
    seen: Seen, algorithm: BaseModel, pipeline: Any, dataset: Dataset, amounts: Amounts, seed: int
) -> None:
    source = dataset.val or dataset.train
    total = source.info.num_samples
    indices = np.unique(np.linspace(0, total - 1, min(amounts.images, total)).astype(np.int64))
    made = masked(algorithm, pipeline, source, indices, seed)
    if made is not None:
        rows = [
            [picture(image, name) for image, name in zip(row, made.columns, strict=True)] for row in made.rows
        ]
        where = "Held-out images, not seen in training." if dataset.val else "Training images."
        seen.masked = Table(made.columns, rows, f"{where} {made.note}")


def _features(
    seen: Seen, subject: Subject, algorithm: BaseModel, dataset: Dataset, amounts: Amounts, size: int
) -> None:
    broken: dict[str, str] = {}
    bank, queries = found.embed_both(
        algorithm, dataset, size=size, bank=amounts.bank, queries=amounts.bank, broken=broken
    )
    if broken:
        subject.notes.append(
            f"{len(broken)} images cannot be read, such as {min(broken)}; they are left out."
        )
    if not queries.features.isfinite().all() or not bank.features.isfinite().all():
        subject.notes.append("The features are not finite: no neighbours and no map.")
        return
    neighbours = found.nearest(queries, bank, _NEIGHBOURS)
    chosen = [neighbours[i] for i in found.one_of_each(queries, amounts.queries)]
    seen.asked = [
        Asked(
            picture(queries.images[n.query], queries.name(n.query), largest=96),
            [
                (picture(bank.images[j], bank.name(j), largest=96), s, right)
                for j, s, right in zip(n.found, n.similarity, n.right, strict=True)
            ],
        )
        for n in chosen
    ]
    asked = "held-out" if dataset.val is not None else "training"
    seen.neighbours_note = f"Among {len(bank.index):,} training images, by cosine similarity of the features."
    if queries.labels is not None and neighbours:
        share = float(np.mean([right for n in neighbours for right in n.right]))
        seen.neighbours_note += (
            f" Over all {len(queries.index):,} {asked} images asked, {100 * share:.1f} % of the {_NEIGHBOURS} nearest "
            "are of the same class."
        )
    _maps(seen, queries, amounts.mapped)


def _maps(seen: Seen, images: found.Embedded, count: int) -> None:
    total = len(images.index)
    kept = np.unique(np.linspace(0, total - 1, min(count, total)).astype(int))
    drawn = found.maps(images.features[kept])
    if not drawn:
        return
    labels = np.zeros(len(kept), int) if images.labels is None else images.labels[kept]
    seen.names = [images.name(i) for i in kept]
    if images.labels is not None:
        classes, counts = np.unique(labels, return_counts=True)
        # The commonest get a colour, in the order of their numbers; the rest share one.
        if len(classes) > _NAMED:
            top = sorted(np.argsort(-counts, kind="stable")[:_NAMED])
            classes, counts = classes[top], counts[top]
        colours = {int(c): i for i, c in enumerate(classes)}
        seen.legend = [
            (i, found.class_name(int(c), images.names), int(n))
            for i, (c, n) in enumerate(zip(classes, counts, strict=True))
        ]
        if (rest := len(kept) - int(counts.sum())) > 0:
            seen.legend = [*seen.legend, (_NAMED, "other classes", rest)]
        colour = np.array([colours.get(int(c), _NAMED) for c in labels])
    else:
        colour = np.zeros(len(kept), int)
    cell = min(images.images.shape[1], 44 if images.images.shape[1] > PIXELS else 32)
    seen.thumbnails = sheet([images.images[i] for i in kept], cell)
    seen.maps = [_plotted(m, colour, seen.legend) for m in drawn]


def _plotted(m: found.Map, colour: np.ndarray, legend: Sequence[tuple[int, str, int]]) -> Plotted:
    xy = np.round(m.xy, 4)
    shown: list[int] = []
    for i in np.random.default_rng(0).permutation(len(xy)):
        if len(shown) == _SHOWN:
            break
        if not shown or (np.abs(xy[shown] - xy[i]).max(axis=1) > _GAP).all():
            shown.append(int(i))
    labels = []
    if m.name != "PCA":  # classes lie over one another there
        for number, name, _ in legend:
            if number < _NAMED:
                x, y = np.median(xy[colour == number], axis=0)
                labels.append((float(x), float(y), number, name))
    points = [(float(x), float(y), int(c)) for (x, y), c in zip(xy, colour, strict=True)]
    return Plotted(m.name, m.note, points, shown, _apart(labels))


def _apart(
    labels: list[tuple[float, float, int, str]], height: float = 0.04
) -> list[tuple[float, float, int, str]]:
    """The labels, moved down where they would lie on one another. Widths are guessed from the letters."""
    placed: list[tuple[float, float, int, str]] = []
    for x, y, number, name in sorted(labels, key=lambda label: label[1]):
        wide = 0.011 * len(name) + 0.02
        x = min(max(x, wide), 1 - wide)
        while any(
            abs(x - other[0]) < wide + 0.011 * len(other[3]) and abs(y - other[1]) < height
            for other in placed
        ):
            y += height / 4
        placed.append((x, y, number, name))
    return placed


def _logged_preview(subject: Subject) -> Picture | None:
    """The picture of views that the run itself logged when it began."""
    with tempfile.TemporaryDirectory() as directory:
        file = subject.history.artifact(subject.run.run_id, PREVIEW, directory)
        return None if file is None else from_file(file, "views, as logged when the run began")
