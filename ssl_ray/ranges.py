"""Ranges of arguments, for annotations such as `temperature: Positive`.

`ssl_ray.checks` refuses what lies outside by the argument's path, wherever a Spec or a recipe is written. Numbers that
take memory or time in proportion end far above whatever was published, so that a slip of the keyboard is refused where
it was typed and not by a machine that has no memory left. Rates and weights have no such end: a run that diverges says
so itself.
"""

from typing import Annotated, Any

from pydantic import Field

Count = Annotated[int, Field(gt=0)]
"""How many, how long, how often."""
Natural = Annotated[int, Field(ge=0)]
"""The same, and 0 for none."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""What torch's generators take."""

Channels = Annotated[int, Field(gt=0, le=2**18)]
"""Width of a layer."""
Classes = Annotated[int, Field(ge=2, le=2**24)]
"""Classes, clusters, prototypes, tokens: among fewer than two there is nothing to tell apart."""
Depth = Annotated[int, Field(gt=0, le=1024)]
"""Blocks, layers."""
Pixels = Annotated[int, Field(gt=0, le=8192)]
"""Side of a view, or of a part of one."""
MOST_PATCHES = 2**16
Patches = Annotated[int, Field(gt=0, le=MOST_PATCHES)]
"""Of a view, at most 256 along a side: a Transformer compares each with every other."""
Window = Annotated[int, Field(gt=0, le=64)]
"""Side of a small square of cells."""

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
"""0 to 1, both included: probabilities, weights of a moving average."""
Share = Annotated[float, Field(gt=0, le=1)]
"""Of something that must not be empty."""
Part = Annotated[float, Field(gt=0, lt=1)]
"""Of something both parts of which are needed."""
Rate = Annotated[float, Field(ge=0, lt=1)]
"""Dropout, and memories that must not last for ever: 1 would leave nothing."""
Ratio = Annotated[float, Field(gt=0, le=100)]
"""Of two widths."""

OPTIMIZER: dict[str, Any] = {
    "lr": Positive,
    "weight_decay": NotNegative,
    "momentum": Rate,
    "dampening": Rate,
    "betas": tuple[Rate, Rate],
    "eps": Positive,
}
"""Of arguments that torch's optimisers have in common, whose own annotations say numbers only."""
