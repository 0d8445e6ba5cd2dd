"""Build hook: a wheel carries the workflow, an editable install uses the checkout's (``histomri.io.resources.workflow_root``)."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CarryWorkflow(BuildHookInterface):
    """Adds the workflow, its schemas and its environments to a wheel, under ``histomri/_workflow``."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before a build."""
        if version != "editable":
            parts = ("Snakefile", "workflow", "config", "envs")
            build_data["force_include"] |= {part: f"histomri/_workflow/{part}" for part in parts}
