"""Print docs/settings.md from producer/settings.py: ``python -m docs.settings_page > docs/settings.md``."""

from __future__ import annotations

from typing import Any

from producer.settings import CONFIG_VARIABLE, PREFIX, Settings

HEAD = f"""\
<!-- Generated from producer/settings.py: `python -m docs.settings_page > docs/settings.md` -->
# Settings

Sources, in increasing priority: the defaults below, `config.json`, `{PREFIX}*` environment variables, arguments of the
command line. An invalid value, or a name within two letters of one of these, is an error that names the setting and its
source; an empty variable counts as unset, except that an empty `POSTERS_CATALOGUE` means none. Settings are read once,
when a program starts. Relative paths are relative to the folder in which it is started, so give absolute paths to a
backend or a service; `~` is the home folder.

`config.json` is read from the current folder, or from the file that `{CONFIG_VARIABLE}` names; `{CONFIG_VARIABLE}=none`
reads no file. It holds one object per section below, with the setting's name in lower case and without the prefix.
Sections and `{PREFIX}*` variables of other programs are ignored, so that both may share a file:

```json
{{"clip": {{"model_name": "ViT-B/32", "batch_size": 64}}, "posters": {{"root": "/srv/posters"}}}}
```

Give the producer and the worker the same settings. How to choose a device, weights and a precision is described in
[install.md](install.md); users, passwords and TLS for Redis in
[delivery.md](delivery.md#redis-users-passwords-and-tls).
"""
TABLE = "\n| variable | default | values | meaning |\n|---|---|---|---|"


def page() -> str:
    """The whole page as Markdown."""
    schema = Settings.model_json_schema()["properties"]
    lines = [HEAD.rstrip()]
    for section in dict.fromkeys(setting["section"] for setting in schema.values()):
        rows = [_row(name, setting) for name, setting in schema.items() if setting["section"] == section]
        lines += [f"\n## Section `{section}`", TABLE, *rows]
    return "\n".join(lines) + "\n"


def _row(name: str, schema: dict[str, Any]) -> str:
    default = schema.get("default")
    default = ",".join(default) if isinstance(default, list) else default
    shown = "not set" if default is None else f"`{default}`"
    return f"| `{PREFIX}{name.upper()}` | {shown} | {_values(schema)} | {schema.get('description', '')} |"


def _values(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_values(kind) for kind in schema["anyOf"] if kind.get("type") != "null")
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    low, above, high = (schema.get(name) for name in ("minimum", "exclusiveMinimum", "maximum"))
    bounds = [f"≥ {low}" if low is not None else "", f"> {above}" if above is not None else ""]
    bounds.append(f"≤ {high}" if high is not None else "")
    kind = {"boolean": "`true`, `false`", "string": "text", "integer": "integer", "array": "list"}.get(
        schema["type"], "number"
    )
    return " ".join(filter(None, ["path" if schema.get("format") == "path" else kind, ", ".join(filter(None, bounds))]))


if __name__ == "__main__":
    print(page(), end="")
