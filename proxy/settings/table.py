"""The settings as a Markdown table, for the docs and `check --settings-table`."""

from proxy.settings.model import Settings, SiteSettings
from proxy.settings.names import variable

TABLES = ("endpoints", "parameters", "rename")


def table() -> str:
    """The settings as a Markdown table."""
    rows = ["| setting | environment | default | what it is |", "| --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        if name not in ("sites", *TABLES):
            rows.append(f"| `{name}` | `{variable((name,))}` | {_default(name, field.default)} | {field.description} |")
    for name in TABLES:
        rows.append(f"| `{name}.NAME` | — | — | {Settings.model_fields[name].description} |")
    for name, field in SiteSettings.model_fields.items():
        env = variable(("sites", "name", name)).replace("NAME", "NAME")
        default = "required" if field.is_required() else "—"
        rows.append(f"| `sites.NAME.{name}` | `{env}` | {default} | {field.description} |")
    return "\n".join(rows)


def _default(name: str, value: object) -> str:
    if name == "max_bytes":
        return "`10GiB`"
    if isinstance(value, list):
        return f"`{','.join(value)}`" if any(value) else "none"
    words: dict[object, str] = {None: "—", "": "none", False: "`false`", True: "`true`"}
    if (value in words and not isinstance(value, int | float)) or isinstance(value, bool):
        return words[value]
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
