"""Engines that are not wrong, but of which little or nothing can be judged."""

from pathlib import Path
from typing import Any

from reference.engine import ReferenceEngine, ReferenceModel
from reference.generate import Generation


class OpsOnly(ReferenceEngine):
    """Offers some rows, and no model."""

    def ops(self) -> dict[str, Any]:
        return {name: row for name, row in super().ops().items() if name in ("rms_norm", "rope")}

    def load_model(self, checkpoint: Path) -> ReferenceModel:
        raise NotImplementedError("operators only")


class Nothing(OpsOnly):
    """Offers nothing."""

    def ops(self) -> dict[str, Any]:
        return {}


class NeverDraftsModel(ReferenceModel):
    """Takes the number of drafts, and never drafts."""

    def generate(
        self, prompt_ids: list[int], max_new_tokens: int, mtp: int = 0, *args: Any, **options: Any
    ) -> Generation:
        result = super().generate(prompt_ids, max_new_tokens, 0, *args, **options)
        result.drafted_per_position, result.accepted_per_position = [0] * mtp, [0] * mtp
        return result


class NeverDrafts(ReferenceEngine):
    def load_model(self, checkpoint: Path) -> ReferenceModel:
        return NeverDraftsModel(super().load_model(checkpoint).model)


ops_only, nothing = OpsOnly("ops-only"), Nothing("nothing")
never_drafts = NeverDrafts()
unknown_profile = Nothing("unknown-profile")
unknown_profile.profile = "float7"
