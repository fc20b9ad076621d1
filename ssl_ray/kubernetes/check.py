"""Checks manifests as strictly as KubeRay's API and operator ever would, without either; says all that is wrong."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import yaml
from jsonschema import Draft202012Validator

from ssl_ray.errors import UserError, nearest
from ssl_ray.kubernetes import rules
from ssl_ray.kubernetes.schema import API_VERSION, KINDS, kuberay

Object = dict[str, Any]


def read(path: Path) -> list[Object]:
    """The RayJobs and RayClusters of a YAML file; what is of another API is left out. Raises UserError."""
    try:
        documents = list(yaml.load_all(path.read_text(), Loader=_Loader))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no YAML ({error})") from error
    ours = [d for d in documents if isinstance(d, dict) and str(d.get("apiVersion", "")).startswith("ray.io")]
    if not ours:
        raise UserError(f"{path}: neither a RayJob nor a RayCluster (apiVersion: {API_VERSION})")
    return ours


def mistakes(manifest: Object) -> list[str]:
    """All that is wrong with a RayJob or RayCluster, a line each: the path of the field, and what to do.

    The operator's rules are asked where every field has its type: they read the values.
    """
    if (kind := manifest.get("kind")) not in KINDS:
        return [f"kind: {kind!r}; {nearest(str(kind), KINDS)}"]
    schema = kuberay()
    errors = list(_Validator({"$defs": schema["$defs"], "$ref": f"#/$defs/{kind}"}).iter_errors(manifest))
    found = sorted(line for error in errors for line in _say(error))
    if not {"type", "anyOf"} & {error.validator for error in errors}:
        found += [f"{path}: {what}" for path, what in rules.broken(manifest)]
    return found


def _say(error: jsonschema.ValidationError) -> Iterator[str]:
    """The lines for one violation of the schema."""
    path = _path(error.absolute_path)
    match error.validator:
        case "additionalProperties":
            known = error.schema["properties"]
            for field in sorted(error.instance.keys() - known.keys()):
                yield f"{_join(path, field)}: unknown field; {nearest(field, known)}"
        case "required":
            yield f"{path or 'manifest'}: {error.message.replace(' is a required property', ' is missing')}"
        case "type" if error.validator_value == "string" and isinstance(error.instance, bool | int | float):
            yield f"{path}: {error.instance!r} must be text; write it in quotes"
        case "type":
            yield f"{path}: {_short(error.instance)} is no {error.validator_value}"
        case "anyOf":  # with x-kubernetes-int-or-string: the only place where KubeRay's schema has it
            yield f"{path}: {_short(error.instance)} is neither an integer nor text; write it in quotes"
        case "enum":
            yield f"{path}: {error.instance!r}; {nearest(str(error.instance), map(str, error.validator_value))}"
        case "const":
            yield f"{path}: {error.instance!r}; must be {error.validator_value!r}"
        case "pattern" if error.schema.get("x-kubernetes-int-or-string"):
            yield f"{path}: {error.instance!r} is no quantity; write 2, 500m, 16Gi or the like"
        case _:
            yield f"{path}: {error.message}"


def _path(parts: Any) -> str:
    path = ""
    for part in parts:
        path = f"{path}[{part}]" if isinstance(part, int) else _join(path, part)
    return path


def _join(path: str, field: object) -> str:
    return f"{path}.{field}" if path else str(field)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unique(_: Any, keys: list[str], items: Any, schema: Object) -> Iterator[jsonschema.ValidationError]:
    """Kubernetes' lists that are maps: containers, ports, variables of an environment, ..."""
    seen = set()
    for i, item in enumerate(items if isinstance(items, list) else ()):
        if not isinstance(item, dict):
            continue
        key = tuple(str(item.get(name)) for name in keys)
        if key in seen:
            said = ", ".join(f"{n}: {item[n]!r}" for n in keys if n in item)
            yield jsonschema.ValidationError(f"{said} is there already", path=[i])
        seen.add(key)


_Validator: Any = jsonschema.validators.extend(Draft202012Validator, {"x-kubernetes-list-map-keys": _unique})


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """As Kubernetes reads YAML: dates are text; and a key that is there twice is an error rather than lost."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key!r} is there twice, line {node.start_mark.line + 1} and below")
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made
