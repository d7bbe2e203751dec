"""Write docs/configuration.md from the configuration models; with --check, fail when the committed file differs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from vipe_dag.config import PipelineConfig, load_config, presets
from vipe_dag.config_words import expected

TARGET = Path(__file__).with_name("configuration.md")

INTRODUCTION = """\
# Configuration

<!-- Written by docs/generate.py (`make docs`). Edit the models in vipe_dag/config.py instead. -->

Every value that changes a result is listed here, and each is part of the fingerprint of its stage: change one and exactly that stage and
those below it are computed anew; change it back and nothing is. Values come from a preset, then a YAML file, then the command line, the
later replacing the earlier:

```
vipe-dag run clip.mp4 --store out --preset fast --set frames.long_side=512
```

A store may carry its own `config.yaml` at its root, which the command line and the UI both start from. It holds sections as below and may
name its preset:

```yaml
preset: quality
frames:
  long_side: 800
```

An unknown name or a value out of bounds is refused, with the nearest valid name or the bounds.
"""


def render() -> str:
    """The whole reference as Markdown."""
    defaults = load_config()
    parts = [INTRODUCTION]
    for stage, section in PipelineConfig.model_fields.items():
        model = section.annotation
        assert model is not None
        fields = model.model_fields
        parts.append(f"## {stage}\n\n{(model.__doc__ or '').strip()}\n")
        if fields:
            rows = [
                f"| `{name}` | `{_scalar(getattr(getattr(defaults, stage), name))}` | {expected(field)} | {field.description} |"
                for name, field in fields.items()
            ]
            parts.append("\n".join(["| field | default | takes | meaning |", "|---|---|---|---|", *rows]) + "\n")
    parts.append("## Presets\n\n" + "\n".join(_preset(name) for name in presets()) + "\n")
    return "\n".join(parts)


def _preset(name: str) -> str:
    chosen, defaults = load_config(name), load_config()
    changes = [
        f"`{stage}.{field}={_scalar(value)}`"
        for stage, section in chosen
        for field, value in section
        if value != getattr(getattr(defaults, stage), field)
    ]
    return f"- `{name}`: " + (", ".join(changes) or "the defaults above")


def _scalar(value: object) -> str:
    return yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True).removesuffix("...\n").strip()


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true", help="compare only; exit 1 when the file is not current")
    if arguments.parse_args().check:
        current = TARGET.exists() and TARGET.read_text(encoding="utf-8") == render()
        if not current:
            print(f"{TARGET.relative_to(TARGET.parents[1])} is not current: run `make docs` and commit it", file=sys.stderr)
        return 0 if current else 1
    TARGET.write_text(render(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
