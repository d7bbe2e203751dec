"""YAML with exact scalars: safe, the number syntax of YAML 1.2, no duplicate keys, tags or aliases, sequences as tuples."""

from __future__ import annotations

import re
from typing import Any

import yaml

from vipe_dag.errors import ConfigError

MAX_DEPTH = 32
MAX_SAID = 400


def parse(text: str, origin: str) -> Any:
    """The value of a YAML document: None, bool, int, float, str, tuple or dict. Raises ConfigError that begins with `origin`."""
    try:
        return _tuples(yaml.load(text, _Loader))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an integer of thousands of digits
        said = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")  # what the parser calls a text; `origin` is its name
        raise ConfigError(f"{origin}: not valid YAML: {said[:MAX_SAID]}") from error


class _Loader(yaml.SafeLoader):
    """safe_load with the scalars of YAML 1.2: `1e-3` is a number, `on` and `010` are text, a key given twice is refused."""

    depth = 0

    def fetch_flow_collection_start(self, token_class: type[yaml.Token]) -> None:
        """The scanner reads ahead of compose_node, and its time grows with the square of open brackets."""
        if self.flow_level >= MAX_DEPTH:
            raise yaml.scanner.ScannerError(None, None, f"nested more than {MAX_DEPTH} deep", self.get_mark())
        super().fetch_flow_collection_start(token_class)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuses what a configuration does not need and an attacker does: aliases (they multiply), tags, bottomless nesting."""
        event = self.peek_event()
        tag = getattr(event, "tag", None)
        if isinstance(event, yaml.AliasEvent) or tag is not None:
            found = f"the alias *{event.anchor}" if isinstance(event, yaml.AliasEvent) else f"the tag {tag}"
            raise yaml.composer.ComposerError(None, None, f"found {found}; write the value itself", event.start_mark)
        if self.depth >= MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested more than {MAX_DEPTH} deep", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|)$"), ["~", "n", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)$"),
    list("-+0123456789."),
)


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
