"""`ssl-ray evaluate`: how good are the features of a trained network?"""

import os
from typing import Annotated

import typer

from ssl_ray.cli.options import (
    Address,
    BatchSize,
    GpusPerActor,
    ImageColumn,
    JsonAtEnd,
    LabelColumn,
    Quiet,
    Size,
    Storage,
    Subject,
    Verbose,
    make_console,
    while_ray_starts,
)


def evaluate(
    subject: Subject,
    protocols: Annotated[
        list[str] | None,
        typer.Argument(help="knn, linear, lowshot, svm, finetune.", show_default="knn linear"),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Labelled images, as of `pretrain`.", show_default="the run's own")
    ] = None,
    storage: Storage = "runs",
    random: Annotated[
        bool,
        typer.Option("--random", help="The same network with untrained weights: what training has to beat."),
    ] = False,
    size: Size = None,
    actors: Annotated[
        int | None,
        typer.Option(
            "--actors",
            "--workers",
            min=1,
            help="Processes that make features, or train with finetune.",
            show_default="by the cluster; 1 to train",
        ),
    ] = None,
    gpus_per_actor: GpusPerActor = None,
    batch_size: BatchSize = None,
    k: Annotated[
        list[int] | None, typer.Option(min=1, help="Neighbours.", show_default="10, 20, 100, 200")
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(help="Of kNN's weights exp(s / T).", show_default="0.07, 0.1")
    ] = None,
    probe: Annotated[
        str,
        typer.Option(
            help="Linear heads by moco, simclr, mae or lbfgs; auto: moco or mae by the network, and lbfgs."
        ),
    ] = "auto",
    shots: Annotated[
        list[int] | None, typer.Option(min=1, help="Labels per class.", show_default="1, 2, 4, 8, 16")
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of few labels, for mean and spread.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of splits, draws and initial weights.")] = 0,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            help="finetune: how many labels, such as 1%, 10%, 4-shot; repeatable.", show_default="100%"
        ),
    ] = None,
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="finetune: from random weights, to see what pretraining gives."),
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="finetune: path=value of its recipe, such as training.epochs=20."),
    ] = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    holdout: Annotated[
        float | None,
        typer.Option(help="Share held out where the data has no split.", show_default="the run's, else 0.1"),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor keep features.")] = False,
    address: Address = None,
    as_json: JsonAtEnd = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Judge the features of a trained network on held-out images.

    Features are made once, in parallel, from plain images: resized and cropped, not augmented. They are kept, and read
    again by the next evaluation of the same weights on the same images.

    knn: weighted by exp(s / T), for each k and T. linear: classifiers of all labels; learning rate or C is chosen on a
    tenth of the training images. lowshot: logistic regression on n labels of each class, and on 1 % and 10 % of them.
    svm: one class against the rest on n labels of each class, costs by cross-validation.
    """
    # Where features are kept already they may be all that is needed.
    kept = any(os.path.isdir(os.path.join(*run, "features")) for run in ((subject,), (storage, subject)))
    with while_ray_starts(address, verbose, wanted=no_cache or not kept):
        from ssl_ray.errors import UserError
        from ssl_ray.trained.case import Choices, FineTuning, Means
        from ssl_ray.trained.evaluate import Request, evaluate

    for value in temperature or ():
        if not value > 0:
            raise UserError(f"temperature: {value:g} is not positive; 0.07 is usual")
    default = Choices()
    evaluate(
        Request(
            subject=subject,
            protocols=tuple(protocols or ()),
            data=data,
            columns={"image_column": image_column, "label_column": label_column},
            holdout=holdout,
            storage=storage,
            random=random,
            size=size,
            means=Means(
                address=address,
                actors=actors,
                gpus_per_actor=gpus_per_actor,
                batch_size=batch_size,
                cache=not no_cache,
                verbose=verbose,
            ),
            choices=Choices(
                ks=tuple(sorted(set(k or default.ks))),
                temperatures=tuple(sorted(set(temperature or default.temperatures))),
                shots=tuple(sorted(set(shots or default.shots))),
                draws=draws,
                probe=probe,
                seed=seed,
                finetuning=FineTuning(tuple(labels or ("100%",)), from_scratch, tuple(settings or ())),
            ),
            as_json=as_json,
        ),
        make_console(as_json, quiet, verbose),
    )
