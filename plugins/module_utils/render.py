"""Templates to manifests: every template of a set is rendered and parsed before anything is applied."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError
from ansible.template import Templar, trust_as_template
from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError

JINJA = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
REFUSAL = re.compile(r"^The filter plugin '[\w.]*require' failed: ")
SUFFIXES = (".yaml.j2", ".yml.j2")


@dataclass
class Manifest:
    """One object to apply, and the template it came from (for messages)."""

    body: dict[str, Any]
    source: str
    autoscaled: bool = False  # an autoscaler of the set owns spec.replicas
    forced: bool = False  # values that another field manager had made are replaced

    @property
    def kind(self) -> str:
        return self.body["kind"]

    @property
    def api_version(self) -> str:
        return self.body["apiVersion"]

    @property
    def name(self) -> str:
        return self.body["metadata"]["name"]

    @property
    def namespace(self) -> str | None:
        return self.body["metadata"].get("namespace")

    @property
    def key(self) -> tuple[str, str, str | None, str]:
        """Identity in a cluster: API group, kind, namespace, name."""
        group = self.api_version.rpartition("/")[0]
        return group, self.kind, self.namespace, self.name

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as Kubernetes reads it: no dates, no base-60 numbers, and a key given twice is an error."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":int", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _value in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|\.[0-9]+([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+)$"
    ),
    list("-+.0123456789"),
)


def find_templates(paths: list[str], base: list[Path]) -> list[Path]:
    """The template files of files and folders, in name order within a folder; sub-folders are not entered.

    :param paths: as the task gave them; relative ones are looked up in `base`, first match wins.
    """
    found: list[Path] = []
    for path in paths:
        candidates = [folder / path for folder in base]
        place = next((candidate for candidate in candidates if candidate.exists()), None)
        if place is None:
            raise EngineError(f"templates: {path} does not exist; looked for {', '.join(str(c) for c in candidates)}.")
        files = [place] if place.is_file() else sorted(file for file in place.iterdir() if file.name.endswith(SUFFIXES))
        if not files:
            raise EngineError(f"templates: {place} holds no *.yaml.j2 file.")
        found += files
    return found


def render(
    templar: Templar, files: list[Path], variables: dict[str, Any], search: list[str] | None = None
) -> list[Manifest]:
    """Render and parse templates.

    :param templar: the task's templar, for its loader.
    :param variables: the task variables.
    :param search: further folders for `include` and `import`, after each template's own.
    :raises EngineError: names the file, and where known the line and the variable.
    """
    manifests: list[Manifest] = []
    places: dict[tuple[str, str, str | None, str], Manifest] = {}
    templars: dict[Path, Templar] = {}
    for file in files:
        folder = file.parent
        if folder not in templars:
            paths = [str(folder), str(folder.parent), *(search or [])]
            templars[folder] = templar.copy_with_new_env(searchpath=paths, available_variables=variables)
        for manifest in _parse(_render_one(templars[folder], file), file):
            twin = places.setdefault(manifest.key, manifest)
            if twin is not manifest:
                raise EngineError(f"{manifest} is rendered twice: by {twin.source} and by {manifest.source}.")
            manifests.append(manifest)
    return manifests


def _render_one(templar: Templar, file: Path) -> str:
    source = file.read_text(encoding="utf-8")
    try:
        text = templar.template(trust_as_template(source), escape_backslashes=False, overrides=JINJA)
    except AnsibleError as error:
        message = REFUSAL.sub("", str(getattr(error, "message", "") or error).strip())
        raise EngineError(f"template {_where(error, message, file, source)}: {message.rstrip('.')}.") from None
    return "" if text is None else str(text).encode("utf-8", "replace").decode("utf-8")


def _where(error: BaseException, message: str, file: Path, source: str) -> str:
    """`file` or `file:line` of a template error; an undefined name is searched for, as Jinja does not tell."""
    line, cause = 0, error
    while cause is not None:
        if getattr(cause, "lineno", None):
            line = cause.lineno  # a syntax error
        trace = cause.__traceback__
        while trace:
            template = trace.tb_frame.f_globals.get("__jinja_template__")
            if template is not None:
                line = template.get_corresponding_lineno(trace.tb_lineno)
            trace = trace.tb_next
        cause = cause.__cause__ or cause.__context__
    name = re.search(r"'(\w+)' is undefined|attribute '(\w+)'", message)
    if name and not line:
        word = re.compile(rf"\b{name.group(1) or name.group(2)}\b")
        for place in [file, *sorted(file.parent.glob("*.j2"))]:
            text = source if place == file else place.read_text(encoding="utf-8")
            for number, content in enumerate(text.splitlines(), 1):
                if word.search(content) and "{" in content:
                    return f"{place}:{number}"
    return f"{file}:{line}" if line else str(file)


def _parse(text: str, file: Path) -> list[Manifest]:
    """The objects of a rendered template; `kind: List` is unpacked, empty documents are dropped."""
    try:
        documents = [document for document in yaml.load_all(text, Loader=_Loader) if document is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        number = mark.line if mark else 0
        lines = text.splitlines()
        # Only the key is quoted: the value may be a secret.
        key = re.match(r"\s*(?:- )*([\w.\"'/-]+:)", lines[number]) if number < len(lines) else None
        near = f" (`{key.group(1)} ...`)" if key else ""
        raise EngineError(
            f"template {file}: the result is not valid YAML at its line {number + 1}{near}: {error.problem}."
        ) from None
    manifests = []
    for document in documents:
        if not isinstance(document, dict):
            raise EngineError(f"template {file}: a document is a {type(document).__name__}, not an object.")
        for body in document.get("items") or [] if document.get("kind") == "List" else [document]:
            metadata = body.get("metadata")
            for field, value in (
                ("apiVersion", body.get("apiVersion")),
                ("kind", body.get("kind")),
                ("metadata.name", metadata.get("name") if isinstance(metadata, dict) else None),
            ):
                if not value or not isinstance(value, str):
                    what = "is missing" if value is None else f"must be a string, not {type(value).__name__}"
                    raise EngineError(f"template {file}: {field} {what} in {body.get('kind') or 'a document'}.")
            manifests.append(Manifest(body, str(file)))
    return manifests
