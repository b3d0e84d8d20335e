"""Checks before step 1 of what fails late or silently elsewhere."""

from lorasmith.doctor.finding import Finding, examine
from lorasmith.doctor.job.registry import Job, job_checks
from lorasmith.doctor.place.registry import Place, place_checks

__all__ = ["Finding", "Job", "Place", "examine", "job_checks", "place_checks"]
