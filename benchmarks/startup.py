"""What a command costs before, beside and after its work: the working tree against another revision, by turns.

The revision is checked out in a temporary git worktree and run by the same interpreter, its folder in PYTHONPATH in
place of the working tree's. Both run the command once unmeasured, which compiles modules and fills caches, and then
--rounds times, whichever was last in one round being first in the next. Each run has an empty home and an empty current
folder; what is measured is what somebody at the terminal sees, from the command's start. A phase ends when the line
that tells of it arrives: any line that ends with "N s after the command", and those in COMMANDS. A ratio is the median,
over rounds, of the working tree's figure by the revision's in the same round.

pretrain: moco, 20 steps. tune: simclr, 4 trials of an epoch. embed, evaluate, report: of a run that the revision has
made; each begins with a fresh copy of it.

CPU-seconds are those of all processes of a run, read five times a second: of one that ends, up to the last 0.2 s are
missing. With --memory the runs are not timed but weighed: four times a second, the sum over all processes of the
proportional set size, which counts a shared page once. Reads /proc, so it works on Linux only.

    python benchmarks/startup.py --against REV [--command pretrain] [--rounds 5] [--memory] [--json]
"""

import argparse
import itertools
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ssl_ray.console import Console

ROOT = Path(__file__).resolve().parent.parent
MARK = "SSL_RAY_STARTUP"  # in the environment of all processes of a run
MADE = "made"
TICKS = os.sysconf("SC_CLK_TCK")
CPU_INTERVAL_S, MEMORY_INTERVAL_S = 0.2, 0.25
PATIENCE_S = 30  # for processes that outlive their command
LAST_LINES = 8

FIRST_STEPS = "first steps logged"
TOLD = re.compile(r"(.*\S) [0-9.]+ s after the command$")
PRETRAIN = ("pretrain", "moco", "--steps", "20", "--seed", "0", "-v")


@dataclass(frozen=True)
class Command:
    """A verb as it is measured. phases: what the first line that matches tells. ratios: phases with one of their own.

    on_run: it needs a run made before. trial: what a trial of a search says when it ends.
    """

    arguments: tuple[str, ...]
    phases: Mapping[str, str]
    ratios: Mapping[str, str] = field(default_factory=dict)
    on_run: bool = False
    trial: str | None = None


COMMANDS = {
    "pretrain": Command(
        PRETRAIN,
        {
            "recipe resolved": r"\S+ \(.+\) on ",
            "Ray started": r".*(Started a local Ray instance|Connected to Ray cluster)",
            "training workers asked for": r".*Attempting to start training worker group",
            "training workers started": r".*Started training worker group",
            "untrained network evaluated": r"epoch 0: ",
            "last step told": r".*: step 20/20 ",
            "trained network evaluated": r"epoch (?!0:)[0-9.]+: ",
            "results printed": r"kNN top-1 on held-out images",
        },
        ratios={"ratio_first_steps": FIRST_STEPS},
    ),
    "tune": Command(
        ("tune", "simclr", "--trials", "4", "--max-epochs", "1"),
        {"recipe resolved": r"\S+ \(.+\) on ", "search begun": r"4 trials of at most ", "results": r"best: "},
        trial=r"\S+ \w+ after [0-9.]+ epochs",
    ),
    "embed": Command(
        ("embed", MADE, "--out", "features"),
        {"network read": r".* features at ", "features written": r"read it: "},
        on_run=True,
    ),
    "evaluate": Command(
        ("evaluate", MADE, "knn"),
        {"network read": r".* features at ", "results kept": r"kept in "},
        on_run=True,
    ),
    "report": Command(("report", MADE), {"page written": r"wrote "}, on_run=True),
}


@dataclass(frozen=True)
class Tree:
    """A checkout that is measured, its name for people, and the script that starts its command."""

    name: str
    folder: Path
    script: Path


@dataclass
class Share:
    """What the processes of one name have of a run: how many, and CPU-seconds or MB of them together."""

    count: int = 0
    amount: float = 0.0


Shares = dict[str, Share]


@dataclass(frozen=True)
class Run:
    """One run. phases: seconds after the command at which each was over, `end` that of the command itself.

    gone_s: when its last process was gone. cpu: CPU-seconds of all processes by their name. memory: MB at the peak of
    all, with --memory; else empty.
    """

    tree: str
    phases: dict[str, float]
    gone_s: float
    cpu: Shares
    memory: Shares

    @property
    def end(self) -> float:
        """Seconds of the command."""
        return self.phases["end"]

    @property
    def cpu_s(self) -> float:
        """CPU-seconds of all processes."""
        return sum_of(self.cpu).amount

    @property
    def peak_mb(self) -> float:
        """Memory of all processes at its peak."""
        return sum_of(self.memory).amount

    @property
    def trial_s(self) -> float | None:
        """Seconds of each further trial; None where fewer than two have ended."""
        ends = [at for name, at in self.phases.items() if name.startswith("trial ")]
        return (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else None

    def told(self) -> dict[str, Any]:
        """What JSON says of it."""
        return asdict(self) | {"cpu_s": self.cpu_s, "peak_mb": self.peak_mb or None, "trial_s": self.trial_s}


def sum_of(shares: Shares) -> Share:
    """Of all names."""
    return Share(sum(s.count for s in shares.values()), sum(s.amount for s in shares.values()))


@dataclass
class Process:
    """A process of a run, as it was last seen; where it was idle then, by what it did before."""

    name: str
    cpu_s: float


class Watch(threading.Thread):
    """Sees all processes of a run, several times a second: those with a mark in their environment and all that descend.

    Both, since one that has changed its title has no environment in /proc any more, and one whose parent is gone has
    another parent. A process is known by its id and its start.
    """

    def __init__(self, mark: bytes, driver: int, memory: bool) -> None:
        super().__init__(daemon=True)
        self.mark, self.driver, self.memory = mark, driver, memory
        self.done = threading.Event()
        self.processes: dict[tuple[int, int], Process] = {}
        self.others: set[tuple[int, int]] = set()
        self.at_peak: Shares = {}

    def run(self) -> None:
        """Looks until `done` is set."""
        self.look()
        while not self.done.wait(MEMORY_INTERVAL_S if self.memory else CPU_INTERVAL_S):
            self.look()

    def look(self) -> list[int]:
        """Reads /proc once. Returns the processes of the run that live."""
        found = {}  # pid -> (key, parent, CPU-seconds)
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            try:
                fields = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:  # it has just ended
                continue
            if fields[0] not in (b"Z", b"X"):
                pid = int(entry.name)
                cpu_s = (int(fields[11]) + int(fields[12])) / TICKS
                found[pid] = (pid, int(fields[19])), int(fields[1]), cpu_s
        ours: dict[int, bool] = {}

        def is_ours(pid: int) -> bool:
            if pid in ours or pid not in found:
                return ours.get(pid, False)
            key, parent, _ = found[pid]
            ours[pid] = key in self.processes or is_ours(parent) or self._marked(key)
            return ours[pid]

        living = [pid for pid in found if is_ours(pid)]
        shares: Shares = {}
        for pid in living:
            key, _, cpu_s = found[pid]
            name = "driver" if pid == self.driver else named(pid)
            known = self.processes.get(key)
            if known is not None and (not name or name == "idle worker"):
                name = known.name
            self.processes[key] = Process(name, cpu_s)
            if self.memory:
                share = shares.setdefault(name, Share())
                share.count += 1
                share.amount += proportional_mb(pid)
        if sum_of(shares).amount > sum_of(self.at_peak).amount:
            self.at_peak = shares
        return living

    def _marked(self, key: tuple[int, int]) -> bool:
        if key in self.others:
            return False
        try:
            environment = Path(f"/proc/{key[0]}/environ").read_bytes()
        except OSError:  # another user's, or it has just ended
            return False
        marked = self.mark in environment.split(b"\0")
        if environment and not marked:  # while a process starts it has none
            self.others.add(key)
        return marked

    def cpu(self) -> Shares:
        """CPU-seconds of all that was seen."""
        shares: Shares = {}
        for process in self.processes.values():
            share = shares.setdefault(process.name, Share())
            share.count += 1
            share.amount += process.cpu_s
        return shares


def named(pid: int) -> str:
    """What a process is, for people: the class of an actor, the module or script that Python runs, else the program."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
    words = [word for word in line.split("\0") if word]
    if not words:
        return ""
    if actor := re.match(r"ray::([\w<>]+)", words[0]):
        title = actor[1].removeprefix("_").partition("__execute")[0]
        return "idle worker" if title == "IDLE" else title
    if "python" not in Path(words[0]).name:
        return Path(words[0]).name
    for before, word in itertools.pairwise(words):
        if before == "-m":
            return word
        if before == "-c":
            return re.split(r"[^\w.]+", word.removeprefix("from ").removeprefix("import "))[0]
        if word.endswith(".py"):
            script = Path(word)
            return "idle worker" if script.stem == "default_worker" else f"{script.parent.name}/{script.name}"
    return Path(words[1] if len(words) > 1 else words[0]).name


def proportional_mb(pid: int) -> float:
    """Proportional set size of a process, MB; 0 if it has just ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    size = re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE)
    return int(size[1]) / 1024 if size else 0.0


def git(*arguments: str) -> str:
    """What git says; raises CalledProcessError where it refuses."""
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@contextmanager
def checked_out(revision: str, folder: Path) -> Iterator[Path]:
    """The revision's files, while the body runs."""
    try:
        commit = git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except (OSError, subprocess.CalledProcessError):
        sys.exit(f"startup.py: --against {revision!r} is no revision that git knows in {ROOT}")
    try:
        git("worktree", "add", "--quiet", "--detach", str(folder), commit)
    except subprocess.CalledProcessError as error:
        sys.exit(f"startup.py: git makes no worktree of {revision}: {error.stderr.strip().splitlines()[-1]}")
    try:
        yield folder
    finally:
        git("worktree", "remove", "--force", str(folder))


def installed(name: str, tree: Path, bin_folder: Path) -> Tree:
    """The tree with a script as an installer would write it: what `ssl-ray` is there."""
    project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["ssl-ray"].partition(":")
    script = bin_folder / "ssl-ray"
    bin_folder.mkdir()
    script.write_text(
        f'import sys\nfrom {module} import {function}\nif __name__ == "__main__":\n    sys.exit({function}())\n'
    )
    return Tree(name, tree, script)


class Bench:
    """Runs a command of either tree, always at the same place."""

    def __init__(self, folder: Path, command: Command, memory: bool) -> None:
        self.folder, self.command, self.memory = folder, command, memory
        self.here, self.home, self.kept = (folder / name for name in ("here", "home", "kept"))

    def environment(self, tree: Tree, token: str) -> dict[str, str]:
        """A user's without our settings; modules are compiled once, caches last, lines are told at once."""
        left_out = ("PYTHONDONTWRITEBYTECODE", "MLFLOW_TRACKING_URI", "SSL_RAY_STORAGE", "RAY_ADDRESS")
        return {name: value for name, value in os.environ.items() if name not in left_out} | {
            "PYTHONPATH": str(tree.folder),
            "PYTHONUNBUFFERED": "1",
            "HOME": str(self.home),
            "XDG_CACHE_HOME": str(tree.script.parent / "cache"),
            MARK: token,
        }

    def make_run(self, tree: Tree) -> None:
        """Makes the run that the command needs, and keeps a copy of it as it is then."""
        if self.command.on_run:
            self._clear()
            self._run(tree, (*PRETRAIN, "--name", MADE))
            shutil.copytree(self.here, self.kept)

    def measure(self, tree: Tree) -> Run:
        """Runs the command to its end, and until its last process is gone."""
        self._clear()
        if self.kept.exists():
            shutil.copytree(self.kept, self.here, dirs_exist_ok=True)
        return self._run(tree, self.command.arguments)

    def _clear(self) -> None:
        for folder in (self.here, self.home):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

    def _run(self, tree: Tree, arguments: Sequence[str]) -> Run:
        token = secrets.token_hex(8)
        lines: list[tuple[float, str]] = []
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, str(tree.script), *arguments],
            cwd=self.here,
            env=self.environment(tree, token),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        stdout = process.stdout
        watch = Watch(f"{MARK}={token}".encode(), process.pid, self.memory)

        def read() -> None:
            with stdout:
                lines.extend((time.monotonic() - started, line.rstrip()) for line in stdout)

        reader = threading.Thread(target=read, daemon=True)
        try:
            reader.start()
            watch.start()
            status = process.wait()
            end = time.monotonic() - started
        finally:
            watch.done.set()
            watch.join()
            left, waited = watch.look(), time.monotonic()
            if process.poll() is None:  # interrupted
                waited -= PATIENCE_S
            while left and time.monotonic() - waited < PATIENCE_S:
                time.sleep(0.05)
                left = watch.look()
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            gone = time.monotonic() - started
            reader.join(timeout=5)
        command = shlex.join(["ssl-ray", *arguments])
        if status:
            last = "\n".join(f"  {line}" for _, line in lines[-LAST_LINES:])
            sys.exit(
                f"startup.py: `{command}` of {tree.name} ended with status {status}; last lines:\n{last}"
            )
        if left:
            sys.exit(
                f"startup.py: {len(left)} processes of `{command}` of {tree.name} lived {PATIENCE_S} s longer than it"
            )
        run = Run(tree.name, phases_of(self.command, lines) | {"end": end}, gone, watch.cpu(), watch.at_peak)
        for phase in self.command.ratios.values() if arguments == self.command.arguments else ():
            if phase not in run.phases:
                sys.exit(f"startup.py: no line of `{command}` of {tree.name} says {phase!r}")
        return run


def phases_of(command: Command, lines: Sequence[tuple[float, str]]) -> dict[str, float]:
    """When each phase was over, in the order of time."""
    phases: dict[str, float] = {}
    trials = 0
    for at, line in lines:
        phases.setdefault("first line", at)
        if told := TOLD.match(line):
            phases.setdefault(told[1], at)
        for name, pattern in command.phases.items():
            if re.match(pattern, line):
                phases.setdefault(name, at)
        if command.trial and re.match(command.trial, line):
            trials += 1
            phases[f"trial {trials} ended"] = at
    return phases


def ratio(pairs: Sequence[tuple[Run, Run]], figure: Callable[[Run], float | None]) -> float | None:
    """Median over rounds of new by old; None where a run has no such figure."""
    figures = [(figure(old), figure(new)) for old, new in pairs]
    ratios = [new / old for old, new in figures if old and new]
    return statistics.median(ratios) if len(ratios) == len(pairs) else None


def median(runs: Sequence[Run], figure: Callable[[Run], float | None]) -> float | None:
    """Median over runs; None where one has no such figure."""
    figures = [value for value in map(figure, runs) if value is not None]
    return statistics.median(figures) if len(figures) == len(runs) else None


def reached(name: str, run: Run) -> float | None:
    """Seconds after the command at which a phase was over."""
    return run.phases.get(name)


def typical(runs: Sequence[Run], figure: Callable[[Run], float]) -> Run:
    """The run with the median figure; of an even number the smaller of the two."""
    return sorted(runs, key=figure)[(len(runs) - 1) // 2]


def cell(value: float | None, decimals: int = 1) -> str:
    """A number, or nothing."""
    return "" if value is None else f"{value:,.{decimals}f}"


def figure_row(
    name: str, pairs: Sequence[tuple[Run, Run]], figure: Callable[[Run], float | None]
) -> tuple[str, ...]:
    """Name, medians of both, ratio."""
    both = [median(runs, figure) for runs in zip(*pairs, strict=True)]
    return (name, *map(cell, both), cell(ratio(pairs, figure), 3))


def phase_rows(pairs: Sequence[tuple[Run, Run]]) -> list[tuple[str, ...]]:
    """A row for each phase, in the order of the first round."""
    old, new = pairs[0]
    times = new.phases | old.phases
    return [figure_row(name, pairs, partial(reached, name)) for name in sorted(times, key=times.__getitem__)]


def process_rows(old: Shares, new: Shares) -> list[tuple[str, ...]]:
    """Number and amount of each name in both, the most first, and of all."""
    none = Share()
    rows = [(name, old.get(name, none), new.get(name, none)) for name in {**old, **new}]
    rows.sort(key=lambda row: -max(row[1].amount, row[2].amount))
    rows.append(("all", sum_of(old), sum_of(new)))
    return [
        (
            name,
            *(
                text
                for share in shares
                for text in (str(share.count or ""), cell(share.amount if share.count else None))
            ),
        )
        for name, *shares in rows
    ]


def show_time(
    console: Console, pairs: Sequence[tuple[Run, Run]], command: Command
) -> dict[str, float | None]:
    """Prints what the timed runs show. Returns the ratios."""
    trees = [run.tree for run in pairs[0]]
    ratios = {phase: ratio(pairs, partial(reached, name)) for phase, name in command.ratios.items()}
    ratios |= {"ratio_total": ratio(pairs, lambda run: run.end)}
    ratios |= {"ratio_cpu": ratio(pairs, lambda run: run.cpu_s)}
    console.table("Phases: s after the command, medians", ["over", *trees, "ratio"], phase_rows(pairs))
    rows = [
        figure_row("last process gone, s", pairs, lambda run: run.gone_s),
        figure_row("CPU-s of all processes", pairs, lambda run: run.cpu_s),
    ]
    if command.trial:
        ratios["ratio_trial"] = ratio(pairs, lambda run: run.trial_s)
        rows.append(figure_row("each further trial, s", pairs, lambda run: run.trial_s))
    console.print("")
    console.table("The run as a whole, medians", ["", *trees, "ratio"], rows)
    old, new = (typical(runs, lambda run: run.cpu_s) for runs in zip(*pairs, strict=True))
    console.print("")
    console.table(
        "CPU-s by process, of the run with the median",
        ["process", trees[0], "CPU-s", trees[1], "CPU-s"],
        process_rows(old.cpu, new.cpu),
    )
    figures: dict[str, Callable[[Run], float | None]] = {
        **{name: partial(reached, name) for name in command.ratios.values()},
        "end": lambda run: run.end,
        "CPU-s": lambda run: run.cpu_s,
    }
    console.print("")
    console.table(
        "Rounds",
        ["round", *(f"{tree}: {name}" for tree in trees for name in figures)],
        [
            (str(number), *(cell(figure(run)) for run in pair for figure in figures.values()))
            for number, pair in enumerate(pairs, 1)
        ],
    )
    return ratios


def show_memory(console: Console, pairs: Sequence[tuple[Run, Run]]) -> dict[str, float | None]:
    """Prints what the weighed runs show. Returns the ratio."""
    trees = [run.tree for run in pairs[0]]
    old, new = (typical(runs, lambda run: run.peak_mb) for runs in zip(*pairs, strict=True))
    console.table(
        "Sum of PSS by process at the peak, of the run with the median",
        ["process", trees[0], "MB", trees[1], "MB"],
        process_rows(old.memory, new.memory),
    )
    console.print("")
    console.table(
        "MB at the peak",
        ["round", *trees, "ratio"],
        [figure_row(str(number), [pair], lambda run: run.peak_mb) for number, pair in enumerate(pairs, 1)],
    )
    return {"ratio_memory": ratio(pairs, lambda run: run.peak_mb)}


def main() -> None:
    """Measures by turns, prints tables, and with --json one line of JSON last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", metavar="REV", required=True, help="a commit, tag or branch")
    parser.add_argument("--command", choices=COMMANDS, default="pretrain")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="weigh the runs instead of timing them")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = parser.parse_args()
    if asked.rounds < 1:
        parser.error(f"--rounds {asked.rounds}: at least 1")
    if not Path("/proc/self/smaps_rollup").exists():
        sys.exit("startup.py reads what processes take from /proc, so it works on Linux only")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("startup.py: stopped"))  # the worktree has to go
    command = COMMANDS[asked.command]
    pairs = []
    with (
        tempfile.TemporaryDirectory(prefix="startup", ignore_cleanup_errors=True) as made,
        checked_out(asked.against, Path(made) / "revision") as revision,
    ):
        folder = Path(made)
        old = installed(asked.against, revision, folder / "old")
        new = installed("working tree", ROOT, folder / "new")
        bench = Bench(folder, command, asked.memory)
        bench.make_run(old)
        for tree in (old, new):
            tell(f"unmeasured: {tree.name}", bench.measure(tree))
        for number in range(asked.rounds):
            order = (old, new) if number % 2 == 0 else (new, old)
            runs = {tree.name: bench.measure(tree) for tree in order}
            for run in runs.values():
                tell(f"round {number + 1} of {asked.rounds}: {run.tree}", run)
            pairs.append((runs[old.name], runs[new.name]))
    console = Console()
    started = shlex.join(["ssl-ray", *command.arguments])
    machine = f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the end"
    state = git("describe", "--always", "--dirty")
    console.print(
        f"{started}: {asked.against} and working tree ({state}), {asked.rounds} rounds; {machine}\n"
    )
    ratios = show_memory(console, pairs) if asked.memory else show_time(console, pairs, command)
    console.print("\n" + ", ".join(f"{name} {cell(value, 3)}" for name, value in ratios.items()))
    if asked.json:
        runs_of = [[run.told() for run in pair] for pair in pairs]
        about = {"command": started, "against": asked.against, "tree": state, "rounds": asked.rounds}
        print(json.dumps(ratios | about | {"runs": runs_of}))


def tell(text: str, run: Run) -> None:
    """A line for whoever waits."""
    peak = f", peak {run.peak_mb:,.0f} MB" if run.memory else ""
    print(f"{text}: {run.end:.1f} s, {run.cpu_s:.1f} CPU-s{peak}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
