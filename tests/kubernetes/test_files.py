"""The files in experiments/kubernetes: what the command prints, an image that can be built, a page that is true."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from ssl_ray import experiments
from ssl_ray.cli.app import app
from ssl_ray.kubernetes.check import mistakes, read
from tests.kubernetes.command import printed

CHECKOUT = Path(__file__).parents[2]
FOLDER = CHECKOUT / "experiments" / "kubernetes"
PAGE = (FOLDER / "README.md").read_text()
DOCKERFILE = re.sub(r"\\\n", " ", (FOLDER / "Dockerfile").read_text())


@pytest.mark.parametrize("name", ["rayjob.yaml", "rayjob-kueue.yaml", "raycluster.yaml"])
def test_a_manifest_is_what_its_first_line_prints(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (FOLDER / name).read_text()
    command = text.splitlines()[0].removeprefix("# ")
    assert printed(command, monkeypatch, capsys) == text
    (manifest,) = read(FOLDER / name)
    assert mistakes(manifest) == []


def test_they_are_no_recipes() -> None:
    assert FOLDER.parent == experiments.folder()
    assert "kubernetes" not in experiments.names()


def instructions(word: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in re.findall(rf"^{word} .*$", DOCKERFILE, re.MULTILINE)]


def test_what_the_image_copies_is_there_and_whole() -> None:
    copied = [source for *sources, _ in instructions("COPY") for source in sources]
    assert [source for source in copied if not (CHECKOUT / source).exists()] == []
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed |= {*wheel["packages"], *wheel["force-include"]}
    assert {path for path in needed if path not in copied and path.partition("/")[0] not in copied} == set()


def test_the_image_suits_the_manifests() -> None:
    (pod,) = {
        yaml.safe_dump(d["spec"]["headGroupSpec"]["template"]["spec"]["securityContext"])
        for d in read(FOLDER / "raycluster.yaml")
    }
    *_, user = instructions("USER")
    assert user == [str(yaml.safe_load(pod)["runAsUser"])]
    assert "install -y --no-install-recommends wget" in DOCKERFILE, "KubeRay's probes call it"
    assert instructions("ENTRYPOINT") == [], "the operator's command must reach a shell"
    ray = (CHECKOUT / "pyproject.toml").read_text()
    (tag,) = set(re.findall(r"rayproject/ray:(\d+\.\d+)\.\d+-py311", DOCKERFILE))
    assert f"ray[default,data,train,tune]>={tag}," in ray


def commands() -> list[list[str]]:
    """The indented `ssl-ray` lines of the page; a backslash continues one."""
    lines = re.findall(
        r"^ {4,}(?:ray job .*-- |[A-Z_]+=\S+ )?(ssl-ray .*)$", PAGE.replace("\\\n", " "), re.MULTILINE
    )
    return [shlex.split(re.sub(r"> \S+$", "", line), comments=True) for line in lines]


def test_the_page_shows_commands_that_are_understood() -> None:
    shown = commands()
    assert {words[1] for words in shown} >= {"cluster", "pretrain"}
    root = typer.main.get_command(app)
    for program, verb, *rest in shown:
        command = root.commands[verb]  # type: ignore[attr-defined]
        if verb == "cluster":
            command, rest = command.commands[rest[0]], rest[1:]
        # How many workers is the recipe's business at run time.
        rest = [re.sub(r"^(\d+)\.\.\d+$", r"\1", word) for word in rest]
        command.make_context(f"{program} {verb}", rest)


def test_the_manifests_of_the_page_are_valid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [words for words in commands() if words[1:3] == ["cluster", "manifest"]]
    assert len(made) >= 2
    for words in made:
        printed(shlex.join(words), monkeypatch, capsys)


def test_the_page_names_files_that_are_there() -> None:
    named = set(re.findall(r"\]\(([\w./-]+)\)", PAGE))
    assert {"Dockerfile", "rayjob.yaml", "rayjob-kueue.yaml", "raycluster.yaml"} <= named
    assert [name for name in named if not (FOLDER / name).exists()] == []
