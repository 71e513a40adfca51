"""Action of `citadelbuy.platform.diagnose`: what is wrong, in one report. Its manual is in plugins/modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from ansible_collections.citadelbuy.platform.plugins.module_utils.connection import EngineError
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_causes import find
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_collect import Collector
from ansible_collections.citadelbuy.platform.plugins.module_utils.diagnose_report import Report, stamp
from ansible_collections.citadelbuy.platform.plugins.module_utils.engine_action import EngineAction, look_back


class ActionModule(EngineAction):
    """Runs on the control node, once a cluster; reads only, in check mode too."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "namespaces": {"type": "list", "elements": "str"},
        "report_dir": {"type": "path", "required": True},
        "since": {"type": "str", "default": "1h"},
        "timeout": {"type": "float", "default": 20.0},
    }

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Returns causes, the files that were written, and for people the causes as msg."""
        back = look_back(args["since"])
        folder = Path(args["report_dir"]).absolute()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(f"the folder {folder} for the report cannot be made: {error.strerror}.") from None
        cluster = self.connect()
        namespaces = list(dict.fromkeys(args["namespaces"] or [self.settings.namespace]))
        snapshot = Collector(cluster, namespaces, back, args["timeout"]).collect()
        causes = find(snapshot)
        report = Report(snapshot, causes)
        files = {}
        for kind, text in (("html", report.html()), ("txt", report.text())):
            file = folder / f"{cluster.name}-{stamp(snapshot.taken)}.{kind}"
            try:
                file.touch(mode=0o600)
                file.write_text(text, encoding="utf-8")
            except OSError as error:
                raise EngineError(f"the report {file} cannot be written: {error.strerror}.") from None
            files[kind] = str(file)
        gaps = (
            f"\nNot collected: {len(snapshot.problems)} parts, named at the report's end." if snapshot.problems else ""
        )
        return {
            "_ansible_verbose_always": True,
            "msg": f"{report.headline}\n\n{report.causes_text()}\n\nReport: {files['html']} and .txt{gaps}",
        } | (
            {
                "causes": [{"kind": cause.kind, "title": cause.title, "objects": cause.objects} for cause in causes],
                "files": files,
            }
            if self._display.verbosity
            else {}
        )
