"""The table at the end of a run."""

from prefect import task

import sppo.report
from sppo.report import RunReport
from sppo.runs import Setup
from tasks.options import LIGHT
from tasks.showing import here


@task(name="report", **LIGHT)
def report_run(setup: Setup) -> RunReport:
    """Every finished iteration's numbers, also as a page in the Prefect UI."""
    report = sppo.report.assemble(setup.store, setup.run)
    if place := here(setup.run):
        place.create("report", "markdown", sppo.report.as_markdown(report), f"run {setup.run}")
    return report
