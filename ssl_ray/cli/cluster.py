"""`ssl-ray cluster`: manifests for KubeRay, made from a few choices, and the check of anybody's."""

from pathlib import Path
from typing import Annotated

import typer

from ssl_ray.cli.options import Quiet, make_console

app = typer.Typer(help="Run on Kubernetes, through KubeRay.", no_args_is_help=True)


@app.command()
def manifest(
    recipe: Annotated[
        str, typer.Argument(help="An algorithm (see `ssl-ray list`), or a recipe's file in the image.")
    ] = "moco",
    arguments: Annotated[
        list[str] | None, typer.Argument(help="After --: further options of `pretrain`.")
    ] = None,
    *,
    image: Annotated[str, typer.Option(help="The image that runs everywhere: REPOSITORY/IMAGE:TAG.")],
    workers: Annotated[
        str,
        typer.Option(help="Training workers, or a range such as 2..16: the cluster grows."),
    ] = "1",
    kind: Annotated[str, typer.Option(help="job: one run; cluster: stays, for `ray job submit`.")] = "job",
    storage: Annotated[
        str | None, typer.Option(help="Where runs are kept: s3://..., or a path on the --claim.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Of the job and of its run, which a retry continues.", show_default="the recipe's"),
    ] = None,
    gpus_per_worker: Annotated[float, typer.Option(min=0, help="GPUs of each worker.")] = 1,
    gpus_per_pod: Annotated[
        int | None,
        typer.Option(min=1, help="GPUs of a training pod, best all of a node.", show_default="one worker's"),
    ] = None,
    cpus_per_worker: Annotated[float, typer.Option(min=0.05, help="CPUs of each worker.")] = 1,
    memory_per_worker: Annotated[int, typer.Option(min=1, help="Memory of each worker, GiB.")] = 32,
    images_per_second: Annotated[
        float, typer.Option(min=1, help="What one worker consumes; measure yours.")
    ] = 1000,
    images_per_core: Annotated[
        float, typer.Option(min=1, help="What one CPU makes views of in a second (benchmarks/data.py).")
    ] = 512,
    data_cpus: Annotated[
        int | None,
        typer.Option(min=1, help="CPUs that make views, in all.", show_default="from the two rates"),
    ] = None,
    data_pods: Annotated[
        int | None,
        typer.Option(
            min=0, help="Pods for them; 0: they are in the training pods.", show_default="one per 16"
        ),
    ] = None,
    mlflow: Annotated[str | None, typer.Option(help="Address of an MLflow server.")] = None,
    env: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE for all processes, such as NCCL_DEBUG=WARN.")
    ] = None,
    secret: Annotated[
        str | None, typer.Option(help="A Secret whose keys become environment variables.")
    ] = None,
    service_account: Annotated[str | None, typer.Option(help="ServiceAccount of the pods.")] = None,
    claim: Annotated[
        str | None, typer.Option(help="CLAIM:/path, a PersistentVolumeClaim that all pods mount.")
    ] = None,
    gpu_node: Annotated[str | None, typer.Option(help="KEY=VALUE, a label of the GPU nodes.")] = None,
    gpu_toleration: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE:EFFECT, a taint of the GPU nodes.", show_default="nvidia.com/gpu"),
    ] = None,
    spot: Annotated[
        str | None, typer.Option(help="KEY=VALUE, label and taint of spot nodes; the head stays off them.")
    ] = None,
    grace: Annotated[int, typer.Option(min=0, help="Seconds that a pod has to end.")] = 120,
    retries: Annotated[int, typer.Option(min=0, help="New clusters for a job that failed.")] = 3,
    queue: Annotated[str | None, typer.Option(help="Queue of Kueue.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Namespace.", show_default="kubectl's")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="standard output")] = None,
) -> None:
    """Print a manifest for `kubectl apply -f -`: a RayJob that trains one recipe, or a RayCluster for many."""
    import re
    import shlex
    import sys

    from ssl_ray.errors import UserError
    from ssl_ray.kubernetes.choices import Choices, parse_env
    from ssl_ray.kubernetes.manifest import manifest, to_yaml
    from ssl_ray.workers import Workers

    if recipe.startswith("-"):
        raise UserError(f"{recipe}: name the recipe before --, such as `cluster manifest moco -- {recipe}`")
    _understood_by_pretrain([recipe, *(arguments or [])])
    stem = re.sub(r"[^a-z0-9]+", "-", Path(recipe.partition(":")[0]).stem.lower()).strip("-")
    made = manifest(
        Choices(
            image=image,
            name=name or (stem if kind == "job" else "ssl-ray"),
            workers=Workers.parse(workers),
            kind=kind,
            storage=storage,
            recipe=recipe,
            arguments=tuple(arguments or ()),
            cpus_per_worker=cpus_per_worker,
            gpus_per_worker=gpus_per_worker,
            gpus_per_pod=gpus_per_pod,
            memory_per_worker=memory_per_worker,
            data_cpus=data_cpus,
            data_pods=data_pods,
            images_per_second=images_per_second,
            images_per_core=images_per_core,
            namespace=namespace,
            queue=queue,
            mlflow=mlflow,
            env=parse_env(env or []),
            service_account=service_account,
            secret=secret,
            claim=claim,
            gpu_node=gpu_node,
            gpu_tolerations=tuple(gpu_toleration or ("nvidia.com/gpu",)),
            spot=spot,
            grace=grace,
            retries=retries,
        )
    )
    if mlflow is None and kind == "job":
        make_console(as_json=False).warn(
            "no --mlflow: what the run logs stays on the pods and goes with them; checkpoints are in --storage"
        )
    text = to_yaml(made, shlex.join(["ssl-ray", *sys.argv[1:]]))
    if out is None:
        print(text, end="")
        return
    try:
        out.write_text(text)
    except OSError as error:
        raise UserError(f"out: {out}: {error.strerror}") from error


def _understood_by_pretrain(words: list[str]) -> None:
    """Ends the command as `pretrain` would for options that it does not know: here rather than on a dear cluster."""
    from ssl_ray.cli.pretrain import pretrain

    verb = typer.Typer(add_completion=False)
    verb.command()(pretrain)
    typer.main.get_command(verb).make_context("ssl-ray pretrain", words)


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="YAML files with RayJobs or RayClusters.")],
    quiet: Quiet = False,
) -> None:
    """Check manifests against KubeRay's schemas, unknown fields included, and its operator's own rules."""
    from ssl_ray.kubernetes.check import mistakes, read

    console = make_console(as_json=False, quiet=quiet)
    wrong = 0
    for path in files:
        for document in read(path):
            name = (
                f"{path}: {document.get('kind')} {(document.get('metadata') or {}).get('name', '')}".rstrip()
            )
            found = mistakes(document)
            wrong += len(found)
            for line in found:
                console.error(f"{name}: {line}")
            if not found:
                console.print(f"{name}: valid")
    if wrong:
        raise typer.Exit(1)
