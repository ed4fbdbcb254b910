"""The calibration of a run: whether the one in the model's sidecar fits its scores, and what a run needs to use it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator

from apache_beam.options.pipeline_options import PipelineOptions

from batchverify.config import ScoringConfig, VerificationConfig
from batchverify.errors import PreflightError
from batchverify.evaluation.calibration import require_scikit_learn
from batchverify.manifest.shard import Manifest
from batchverify.model.calibration import Calibration, config_settings
from batchverify.model.facts import ModelFacts
from batchverify.model.sidecar import Sidecar, sidecar_path
from batchverify.pipeline.dataflow import is_dataflow, refuse_image_without
from batchverify.schema import LLR_FIELD, PROBABILITY_FIELD

_LOG = logging.getLogger(__name__)
_REMEDY = "fit one on a labelled run of it with batchverify calibrate RUN, or leave --prior out"


@dataclasses.dataclass(frozen=True)
class PlannedCalibration:
    """The calibration of a run.

    Attributes:
        used: The calibration that the run uses, or None.
        ignored: The reason why the one in the model's sidecar is not used, or None.
    """

    used: Calibration | None
    ignored: str | None


def plan_calibration(
    config: VerificationConfig, sidecar: Sidecar, facts: ModelFacts, manifest: Manifest, options: PipelineOptions
) -> PlannedCalibration:
    """Decides whether a run uses the calibration in its model's sidecar. One that does not fit is ignored, with a warning.

    Args:
        config: The configuration, completed by the sidecar.
        sidecar: The content of the sidecar.
        facts: The facts about the model.
        manifest: The manifest of the run.
        options: Beam's options.

    Raises:
        PreflightError: If `config.prior` is given and there is no calibration that fits; or, with a calibration, if a column of
            the manifest has the name of one that the run adds, or scikit-learn is missing and there are labels.
    """
    refuse_prior_alone(config, sidecar)
    calibration = sidecar.calibration
    if calibration is None:
        return PlannedCalibration(None, None)
    if ignored := calibration.why_unfit(f"sha256:{facts.digest}", config_settings(config)):
        if config.prior is not None:
            raise PreflightError(
                f"--prior {config.prior:g} needs a calibration that fits; {_name(config)}: {ignored}; {_REMEDY}."
            )
        _LOG.warning("The calibration of %s is not used, so there is no column llr: %s.", _name(config), ignored)
        return PlannedCalibration(None, ignored)
    if problems := list(_find_taken_columns(config, manifest)):
        raise PreflightError(problems)
    if manifest.label_column is not None:
        require_scikit_learn(f"The calibration of {_name(config)}, with labels,")
        if is_dataflow(options):
            refuse_image_without("scikit-learn", "a run with labels and a calibration", options)
    return PlannedCalibration(calibration, None)


def refuse_prior_alone(config: ScoringConfig, sidecar: Sidecar) -> None:
    """Refuses a prior without a calibration.

    Raises:
        PreflightError: With the remedy.
    """
    if config.prior is not None and sidecar.calibration is None:
        raise PreflightError(f"--prior {config.prior:g} needs a calibration, and {_name(config)} has none; {_REMEDY}.")


def _find_taken_columns(config: VerificationConfig, manifest: Manifest) -> Iterator[str]:
    added = {LLR_FIELD.name, *([PROBABILITY_FIELD.name] if config.prior is not None else [])}
    for name in manifest.schema.names:
        if name.casefold() in added:
            yield f"the manifest: column '{name}' is one that the output adds; rename it in the manifest."


def _name(config: ScoringConfig) -> str:
    return "the embedded model" if config.model is None else sidecar_path(config.model)
