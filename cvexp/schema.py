"""A JSON schema of the YAML files, by which editors complete, explain and check them: `python -m cvexp --schema`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from cvexp import options, plugins
from cvexp.config import LoaderConfig, RunConfig
from cvexp.keys import Choice, Key, Range, keys_of, require_one_of
from cvexp.options import Setting

Schema = dict[str, Any]

QUESTION = "--schema"
DRAFT = "http://json-schema.org/draft-07/schema#"  # the version that editors support
HYDRA = ("hydra/launcher", "hydra/sweeper")
TYPES: dict[type, Schema] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": ["string", "number"]},  # a name may be 2024
}
LATER = {"type": "string", "pattern": r"\$\{|^\?\?\?$"}  # an interpolation, or a value that must be given


def asked(words: Sequence[str]) -> str | None:
    """Return the group whose schema a command line asks for; empty for that of experiments, None if for none."""
    return next((word.partition("=")[2] for word in words if word.partition("=")[0] == QUESTION), None)


def make(group: str = "") -> Schema:
    """Return the schema of the options of a group, or of experiments, which may set all keys.

    Raises:
        UserError: if there is no such group.
    """
    if not group:
        return _of_experiments()
    require_one_of(QUESTION, group, [*options.GROUPS, *HYDRA])
    if group in HYDRA:
        return _document(f"An option of {group}", _of_hydra(group))
    kinds = _kinds(group)
    own = _merged(list(kinds.values()), also=("defaults",))
    own["properties"]["defaults"] = _defaults()
    if len(kinds) > 1:
        condition = {name: {"properties": {"name": {"const": name}}, "required": ["name"]} for name in kinds}
        exact = {name: {**kind, "properties": {**kind["properties"], "defaults": True}} for name, kind in kinds.items()}
        own["allOf"] = [{"if": condition[name], "then": exact[name]} for name in kinds]
    return _document(f"An option of {group}", own)


def _of_experiments() -> Schema:
    settings = {each.key: each for each in options.read("config").settings}
    keys = keys_of(RunConfig)
    own = {name: _of_key(key, settings[name]) for name, key in keys.items() if name in settings and name != "loader"}
    loader = {name: _of_key(key, settings[f"loader.{name}"]) for name, key in keys_of(LoaderConfig).items()}
    properties = {
        "defaults": _defaults(),
        **{group: {"$ref": f"#/definitions/{group}"} for group in options.GROUPS},
        "loader": _object(loader),
        **own,
        "hydra": {
            "type": "object",
            "properties": {group.partition("/")[2]: _of_hydra(group) for group in HYDRA},
        },
    }
    definitions, conditions = {}, []
    for group in options.GROUPS:
        kinds = _kinds(group)
        definitions[group] = _merged(list(kinds.values()))
        if len(kinds) == 1:
            continue
        for option, name in _modules(group).items():
            definitions[f"{group}={name}"] = kinds[name]
            chosen = {"properties": {f"override /{group}": {"const": option}}, "required": [f"override /{group}"]}
            conditions.append(
                {
                    "if": {"properties": {"defaults": {"contains": chosen}}, "required": ["defaults"]},
                    "then": {"properties": {group: {"$ref": f"#/definitions/{group}={name}"}}},
                }
            )
    return _document("An experiment", {**_object(properties), "allOf": conditions, "definitions": definitions})


def _document(title: str, schema: Schema) -> Schema:
    return {"$schema": DRAFT, "title": f"{title} of cvexp", **schema}


def _modules(group: str) -> dict[str, str]:
    """Return the module of each option of a group of modules, by the option's name."""
    places = options.folders()
    named = {option: options.resolved(group, option, places).get("name") for option in options.names(group, places)}
    known = plugins.known(group)
    return {option: setting.value for option, setting in named.items() if setting and setting.value in known}


def _kinds(group: str) -> dict[str, Schema]:
    """Return the schema of the keys of a group: one by the name of each module, or a single one."""
    places = options.folders()
    if group in ("task", "dataset"):
        return {
            name: _of_class(plugins.load(group, name).Config, options.resolved(group, option, places))
            for option, name in _modules(group).items()
        }
    settings: dict[str, Setting] = {}
    for option in options.names(group, places):
        settings = {**options.resolved(group, option, places), **settings}
    return {"": _of_class(keys_of(RunConfig)[group].kind, settings)}


def _of_class(owner: type, settings: Mapping[str, Setting]) -> Schema:
    return _object({name: _of_key(key, settings.get(name)) for name, key in keys_of(owner).items()})


def _object(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _merged(schemas: Sequence[Schema], also: Sequence[str] = ()) -> Schema:
    """Return a schema that allows the keys of all schemas; a key that several of them have must fit one of these."""
    names = dict.fromkeys(name for schema in schemas for name in schema["properties"])
    properties: Schema = dict.fromkeys(also, True)
    for name in names:
        different: list[Schema] = []
        for schema in schemas:
            own = schema["properties"].get(name)
            if own is not None and own not in different:
                different.append(own)
        properties[name] = different[0] if len(different) == 1 else {"anyOf": different}
    return _object(properties)


def _of_key(key: Key, setting: Setting | None) -> Schema:
    """Return the schema of a key, with what the YAML says about it."""
    schema: Schema = {"description": setting.comment} if setting and setting.comment else {}
    kinds = [_of_value(key), LATER] + ([{"type": "null"}] if key.is_optional else [])
    return {**schema, "anyOf": kinds}


def _of_value(key: Key) -> Schema:
    item = {**TYPES.get(key.item, {}), **_bounds(key)}
    if get_origin(key.kind) is list:
        length = key.allowed.length if isinstance(key.allowed, Range) else None
        limits = {} if length is None else {"minItems": length, "maxItems": length}
        return {"type": "array", "items": {"anyOf": [item, LATER]}, **limits}
    if get_origin(key.kind) is dict:
        return {"type": "object", "additionalProperties": TYPES.get(get_args(key.kind)[1], {})}
    return item


def _bounds(key: Key) -> Schema:
    if isinstance(key.allowed, Choice):
        return {"enum": key.allowed.known(key.owner)}
    if key.allowed is None:
        return {}
    bounds = {
        "minimum": key.allowed.at_least,
        "exclusiveMinimum": key.allowed.above,
        "maximum": key.allowed.at_most,
        "exclusiveMaximum": key.allowed.below,
    }
    return {name: bound for name, bound in bounds.items() if bound is not None}


def _of_hydra(group: str) -> Schema:
    """Return the schema of launchers or sweepers, whose types are Hydra's; launchers have more keys than we set."""
    settings: dict[str, Setting] = {}
    for name in options.names(group):
        settings = {**{each.key: each for each in options.read(f"{group}/{name}").settings}, **settings}
    properties: Schema = {key: {"description": each.comment} for key, each in settings.items() if "." not in key}
    schema = _object({**properties, "defaults": _defaults()})
    return schema if group == "hydra/sweeper" else {**schema, "additionalProperties": True}


def _defaults() -> Schema:
    """Return the schema of a list of defaults, which names other files and chooses options."""
    places = options.folders()
    choices: Schema = {}
    for group in (*options.GROUPS, *HYDRA, "search", "experiment"):
        known: Schema = {"enum": [*options.names(group, places), None]}
        choices[group] = {"anyOf": [known, {"type": ["array", "string"]}]} if group in HYDRA else known
    entry = {
        "type": "object",
        "properties": {f"override /{group}": choice for group, choice in choices.items()},
        "patternProperties": {f"^(override )?/?{group}(@.*)?$": choice for group, choice in choices.items()},
        "additionalProperties": False,
    }
    return {
        "description": "Options and other files: what comes later replaces what comes before",
        "type": "array",
        "items": {"anyOf": [{"type": "string"}, entry]},
    }
