"""The job as a Beam pipeline: transforms, plan, run."""
