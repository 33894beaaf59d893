"""The table at the end of a run."""

from prefect import task
from prefect.artifacts import create_markdown_artifact

import sppo.report
from sppo.report import RunReport
from sppo.runs import Setup
from tasks.options import LIGHT


@task(name="report", **LIGHT)
def report_run(setup: Setup) -> RunReport:
    """Every finished iteration's numbers, also as a Markdown artifact in Prefect."""
    report = sppo.report.assemble(setup.store, setup.run)
    create_markdown_artifact(sppo.report.as_markdown(report), key="sppo-report", description=f"run {setup.run}")
    return report
