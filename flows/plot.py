"""The run as a picture: held-out win rate by iteration."""

from pathlib import Path

from sppo.report import RunReport, WinRate


def write_plot(report: RunReport, path: Path) -> Path:
    """A PNG of the win rate against the base policy under each judge, with its 95 % interval as a band, and against the
    policy before."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # pyplot would look for a display, and takes a second to import

    figure = Figure(figsize=(7.5, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    numbers = [0, *(each.iteration for each in report.iterations)]
    for position, judge in enumerate(report.iterations[-1].judges):
        against_base = [each.judges[position].against[0] for each in report.iterations]
        kind = "independent judge" if judge.independent else "judge"
        colour = f"C{position}"
        label = f"against the base policy, {kind} {judge.judge}"
        axes.plot(numbers, [0.5, *(rate.mean for rate in against_base)], "-o", color=colour, label=label)
        low, high = _band(against_base)
        axes.fill_between(numbers, low, high, color=colour, alpha=0.15, linewidth=0)
        for iteration, rate in zip(numbers[1:], against_base, strict=True):
            offset = 9 if position == 0 else -14
            place = {"textcoords": "offset points", "ha": "center", "fontsize": 8, "color": colour}
            axes.annotate(f"{rate.mean:.2f}", (iteration, rate.mean), xytext=(0, offset), **place)
    previous = [each.judges[0].against[-1].mean for each in report.iterations]
    label = f"against the policy before, {report.iterations[-1].judges[0].judge}"
    axes.plot(numbers[1:], previous, ":s", color="0.35", markersize=4, label=label)
    axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle="--")
    axes.set_xticks(numbers, ["0 (base)", *(str(number) for number in numbers[1:])])
    axes.set_xlabel("iteration")
    axes.set_ylabel("win rate on held-out prompts")
    axes.set_title(f"Run {report.run}: {report.iterations[-1].judges[0].against[0].prompts} held-out prompts, 95 % intervals")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.22 * (top - bottom))  # room for the legend
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _band(rates: list[WinRate]) -> tuple[list[float], list[float]]:
    return [0.5, *(rate.low for rate in rates)], [0.5, *(rate.high for rate in rates)]
