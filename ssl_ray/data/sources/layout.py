"""What the folders and files of a data set are: splits, classes, or folders around them. Told by paths; no I/O.

Names of splits are understood in any case and with the usual trimmings: `train`, `Training`, `train2017`, `seg_train`,
`split=train`, `train-00000-of-00004.parquet`; `val`, `valid`, `dev`; `test`, `holdout`; `unlabeled`. A folder without
images changes nothing. Where a name may be that of a split or of a class, what the folders hold decides, and a warning
says how; where that decides nothing, the data are refused. Nothing held out is trained on without a word.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ssl_ray.data.sources.location import Location
from ssl_ray.errors import UserError

TRAIN, VAL, TEST, UNLABELLED = "train", "val", "test", "unlabelled"
_WORDS = {
    **dict.fromkeys(("train", "training", "trainval", "labeled", "labelled"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev", "devel"), VAL),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "holdout", "heldout"), TEST),
    **dict.fromkeys(("unlabeled", "unlabelled", "unsup", "unsupervised"), UNLABELLED),
}
# With a word from above these alone make the name of a split, and hardly that of a class.
_TRIMMINGS = {"set", "data", "dataset", "images", "imgs", "split", "folder", "samples"}


# Folders of pictures, and of what is drawn for tasks on these; together they are no classes.
_PICTURES = {"images", "image", "imgs", "img", "jpegimages"}
_DRAWN = {"annotations", "annotation", "masks", "mask", "labels", "label", "gt", "ground", "truth", "trimaps"}
_DRAWN |= {"segmentation", "segmentations", "class", "object", "classes", "instances"}


@dataclass(frozen=True)
class Split:
    """A part of the data. name: as the user calls it. paths: a folder, or files. places: what opens it, or these."""

    name: str
    paths: tuple[str, ...]
    folder: bool
    places: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """The splits of some data; train is None where there are none. unused: splits that are left alone.

    warnings: how folders are read that could be read in another way, and what of them is not used.
    """

    train: Split | None = None
    held_out: Split | None = None
    unused: tuple[Split, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Name:
    """split: what a name says, if anything. word: the word that says it. alone: it says nothing else."""

    split: str | None = None
    word: str = ""
    alone: bool = False


@dataclass
class _Folder:
    """What is below a folder: number of images, whether some of them lie in it, the folders of the others."""

    count: int = 0
    direct: bool = False
    folders: set[str] = field(default_factory=set)


def quoted(names: Iterable[str]) -> str:
    """The first few of some names, in quotes: 'a', 'b', 'c', ...."""
    names = list(names)
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")


def _words(name: str) -> list[str]:
    return re.sub(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])", " ", name).lower().split()


def _said(name: str) -> _Name:
    """What a folder's or file's name says. Nothing where it names several splits."""
    words = re.sub(r"\b(un|held) (?=label|out\b)", r"\1", " ".join(_words(name))).split()
    words = [short if (short := word.removesuffix("set")) in _WORDS else word for word in words]
    found = [word for word in words if word in _WORDS]
    if len({_WORDS[word] for word in found}) != 1:
        return _Name()
    return _Name(_WORDS[found[0]], found[0], set(words) <= {*found, *_TRIMMINGS})


def split_of(name: str) -> str | None:
    """The split that a folder or file is by its name, if any: TRAIN, VAL, TEST or UNLABELLED."""
    return _said(name).split


def not_trained_on(name: str, uri: object) -> str:
    """The warning for unlabelled images: to pretrain on them is a choice that the user makes."""
    return f"the images of {name!r} are not trained on; to pretrain on them, give --data {uri}"


def look_through(paths: Sequence[str], stop: Callable[[str], bool] = lambda name: False) -> str:
    """The folders that hold all `paths`, one in the other: "" or "a/b/". None is entered that `stop` is true for."""
    base = ""
    while paths:
        top, slash, _ = paths[0][len(base) :].partition("/")
        inner = f"{base}{top}/"
        if not slash or stop(top) or not all(path.startswith(inner) for path in paths):
            break
        base = inner
    return base


def folder_layout(paths: Sequence[str], root: Location) -> Layout:
    """Splits that are folders. paths: of images below `root`. Raises UserError where it cannot be told."""
    base = look_through(paths, _is_train)
    folders, loose = _folders(paths, base)
    said = {name: said for name in folders if (said := _said(name)).split}
    clear = {name: what for name, what in said.items() if what.alone}
    drawn = {name for name in folders if (words := set(_words(name))) and words <= _DRAWN}
    for names in (clear, said):
        left = {name: folder.count for name, folder in folders.items() if name not in names}
        others = left.keys() - drawn
        train = [name for name, what in names.items() if what.split == TRAIN]
        # Classes may be called so, too; but then they are few among many, and hold images as the others do.
        few = len(others) <= len(names) or (names is clear and any(folders[name].folders for name in train))
        several = len({what.split for what in names.values()}) > 1
        if train and ((several and few) or (names is clear and not others)):
            splits = [(what.split, Split(name, (base + name,), True)) for name, what in names.items()]
            return _layout(splits, _left_over(left, loose), root / base)
    if clear:
        return Layout(warnings=(_as_classes(clear, folders, loose, root / base),))
    if drawn and len(rest := folders.keys() - drawn) == 1 and "".join(_words(name := min(rest))) in _PICTURES:
        beside = _left_over({name: folders[name].count for name in sorted(drawn)}, loose)
        return _pictures(
            [path for path in paths if path.startswith(f"{base}{name}/")], base + name, beside, root
        )
    if not loose and (found := _in_classes(paths, base, folders, root / base)):
        return found
    return Layout(warnings=(*_held_out_alone(base.split("/")), *_alike(folders)))


def _folders(paths: Sequence[str], base: str) -> tuple[dict[str, _Folder], list[str]]:
    """The folders in `base`, with what is in them, and the paths outside of these."""
    folders: dict[str, _Folder] = {}
    loose = []
    for path in paths:
        top, slash, rest = path[len(base) :].partition("/")
        if not slash:
            loose.append(path)
            continue
        folder = folders.setdefault(top, _Folder())
        folder.count += 1
        inner, slash, _ = rest.partition("/")
        if slash:
            folder.folders.add(inner)
        else:
            folder.direct = True
    return folders, loose


def file_layout(paths: Sequence[str], root: Location) -> Layout:
    """Splits of tables, by the names of folders or files. As `folder_layout`, but no folder is a class."""
    base = look_through(paths, _is_train)
    # `train/0.parquet` or `train-0.parquet`; else `one/train-0.parquet` beside `two/train-0.parquet`.
    for names in (_tops(paths, base), [path.rpartition("/")[2] for path in paths]):
        found: dict[_Name, list[str]] = {}
        for path, name in zip(paths, names, strict=True):
            what = _said(name.removesuffix(".parquet"))
            found.setdefault(_Name(what.split, what.word), []).append(path)
        others = found.pop(_Name(), [])
        if any(what.split == TRAIN for what in found):
            splits = [(what.split, Split(what.word, tuple(files), False)) for what, files in found.items()]
            unused = f"not used, as of no split: {len(others)} Parquet files ({quoted(others)})"
            return _layout(splits, [unused] if others else [], root / base)
    words = [what.word for what in found]
    if len(found) > 1 or (found and others):
        raise UserError(
            f"data: {str(root / base)!r} has no training split beside {quoted([*words, *others])}; call it 'train', or "
            "give --data the folder or file to train on"
        )
    return Layout(warnings=tuple(_held_out_alone([*words, *base.split("/")])))


def _tops(paths: Sequence[str], base: str) -> list[str]:
    return [path[len(base) :].partition("/")[0] for path in paths]


def _is_train(name: str) -> bool:
    said = _said(name)
    return said.split == TRAIN and said.alone


def _layout(found: list[tuple[str | None, Split]], warnings: list[str], root: Location) -> Layout:
    """Which split is trained on, held out, left alone. Raises UserError where two could be that."""
    of = {kind: [split for said, split in found if said == kind] for kind in (TRAIN, VAL, TEST, UNLABELLED)}
    held_out = of[VAL] or of[TEST]
    for kind, several in (("training", of[TRAIN]), ("held-out", held_out)):
        if len(several) > 1:
            raise UserError(
                f"data: {str(root)!r} has more than one {kind} split: {quoted(split.name for split in several)}; "
                "leave one of them there, or give the folder to train on, such as --data "
                f"{root / of[TRAIN][0].name}"
            )
    for split in of[UNLABELLED]:
        warnings.append(not_trained_on(split.name, root / split.name if split.folder else "its files"))
    unused = (*(of[TEST] if of[VAL] else ()), *of[UNLABELLED])
    return Layout(of[TRAIN][0], held_out[0] if held_out else None, unused, tuple(warnings))


def _pictures(paths: Sequence[str], folder: str, warnings: list[str], root: Location) -> Layout:
    """The pictures in `folder`, whose name says that they are this, and that what is beside them is drawn for them."""
    inside = folder_layout(paths, root)
    train = inside.train or Split(folder.rpartition("/")[2], (folder,), True)
    return replace(inside, train=train, warnings=(*warnings, *inside.warnings))


def _in_classes(
    paths: Sequence[str], base: str, folders: Mapping[str, _Folder], root: Location
) -> Layout | None:
    """Splits within each class, as `cat/train` and `dog/train`. Raises UserError where only some classes have them."""
    splits = {
        name: {said.split for inner in folder.folders if (said := _said(inner)).alone}
        for name, folder in folders.items()
    }
    divided = [name for name, kinds in splits.items() if TRAIN in kinds and len(kinds) > 1]
    if not divided:
        return None
    if others := [name for name, kinds in splits.items() if TRAIN not in kinds or folders[name].direct]:
        raise UserError(
            f"data: {str(root)!r} holds splits in {quoted(divided)}, but not in {quoted(others)}; move these away, or "
            "make folders 'train' and 'val' with a folder for each class in them"
        )
    found: dict[str, list[str]] = {}
    places: dict[str, set[str]] = {}
    for path in paths:
        name, inner, _ = path[len(base) :].split("/", 2)
        found.setdefault(inner, []).append(path)
        places.setdefault(inner, set()).add(f"{base}{name}/{inner}")
    of_none = {inner: len(files) for inner, files in found.items() if not _said(inner).alone}
    return _layout(
        [
            (_said(inner).split, Split(inner, tuple(files), False, tuple(sorted(places[inner]))))
            for inner, files in found.items()
            if inner not in of_none
        ],
        _left_over(of_none, []),
        root,
    )


def _left_over(folders: Mapping[str, int], loose: Sequence[str]) -> list[str]:
    found = [f"{quoted(folders)} ({sum(folders.values()):,} images)"] if folders else []
    found += [f"{len(loose):,} images in no folder ({quoted(loose)})"] if loose else []
    return [f"not used, as of no split: {' and '.join(found)}"] if found else []


def _held_out_alone(names: Iterable[str]) -> list[str]:
    alone = [name for name in names if _said(name).alone and _said(name).split in (VAL, TEST)]
    return [f"there is no training split: the images of {quoted(alone)} are trained on"] if alone else []


def _as_classes(
    clear: Mapping[str, _Name], folders: Mapping[str, _Folder], loose: Sequence[str], root: Location
) -> str:
    """What is said when folders named after splits are read as classes. Raises UserError where they may be splits."""
    others = [name for name in folders if name not in clear]
    trains = [name for name, what in clear.items() if what.split == TRAIN]
    if not others and not loose:
        raise UserError(
            f"data: {str(root)!r} has no training split beside {quoted(clear)}; call it 'train', or give the folder to "
            f"train on, such as --data {root / next(iter(clear))}"
        )
    inside: set[str] = set().union(*(folders[name].folders for name in clear))
    same = inside & set(others)
    if len(inside) > 1:  # one folder in each, such as `images`, says nothing
        same |= inside.intersection(*[set().union(*(folders[name].folders for name in others))])
    if same or (trains and inside and any(folders[name].direct for name in others)):
        example = f", such as --data {root / trains[0]}" if trains else ""
        raise UserError(
            f"data: {str(root)!r} holds {quoted(clear)} beside {quoted(others)}: splits or classes? Call splits train, "
            "val, test or unlabeled, move other folders away, rename a class of such a name, or give the folder to "
            f"train on{example}"
        )
    return (
        f"{quoted(clear)} beside {quoted(others) or 'images in no folder'} {'is' if len(clear) == 1 else 'are'} taken "
        "for no split: all images are trained on; splits are folders 'train' and 'val' or 'test'"
    )


def _alike(folders: Mapping[str, _Folder]) -> list[str]:
    """Words for folders that all hold the same folders, two or more: these may be the classes."""
    if len(folders) < 2 or any(folder.direct for folder in folders.values()):
        return []
    common = set.intersection(*(folder.folders for folder in folders.values()))
    if len(common) < 2:
        return []
    return [
        f"the classes are {quoted(sorted(folders))}, though each of them holds {quoted(sorted(common))}: if these are "
        "the classes, and those are splits, call the splits train, val and test"
    ]
