"""`python -m fgpipe.grid`: every published accuracy is one run; this plans, runs, resumes and lists them.

Exit codes: 0, everything asked for is done; 1, a run failed; 2, bad input; 130, interrupted.
"""

from pathlib import Path

from fgpipe.command import command
from fgpipe.config import CONFIGS, Config
from fgpipe.errors import UserError, bad_value
from fgpipe.saving.outputs import check_folder
from fgpipe.study.common.runs import Run
from fgpipe.study.paper.driver import Driver, launcher
from fgpipe.study.paper.estimate import Cost, cost, seconds_per_flop
from fgpipe.study.paper.options import GridOptions, GridPlan, out_folder, parse_options
from fgpipe.study.paper.tables import Cell


@command
def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    if "--help" in arguments or "-h" in arguments:
        print(f"usage: python -m fgpipe.grid [key=value ...]\n\n{(CONFIGS / 'grid.yaml').read_text()}", end="")
        return 0
    options = parse_options(arguments)
    plan = GridPlan.make(options)
    if options.dry_run:
        for line in dry_run(options, plan):
            print(line, flush=True)
        return 0
    return run(options, plan)


def run(options: GridOptions, plan: GridPlan) -> int:
    """Run what is not done; returns the exit code.

    Raises:
        UserError: nothing can be run as it is asked for; nothing has been started.
        KeyboardInterrupt: as `Driver.run`.
    """
    if len(plan.unserved) == len(plan.cells):
        raise UserError(f"no cell to run: {_not_served(options, plan)}")
    out = out_folder(options)
    check_folder("out", Path(options.out))
    for run in plan.runs:  # whatever is wrong shows here, before anything is started
        config = run.compose()
        if options.launcher == "torchrun" and config.tangents == "oracle":
            allowed = "python with tangents=oracle; overrides=[tangents=forward] for several processes"
            raise bad_value("launcher", "torchrun", allowed)
        run.is_done(out, config)
    driver = Driver(
        out,
        options.roots,
        launcher(options.launcher, options.nproc),
        options.jobs,
        lambda line: print(line, flush=True),
    )
    try:
        failed = driver.run(plan.runs)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from here") from None
    print(f"{len(plan.runs) - len(failed)} of {len(plan.runs)} runs are done in {out}; {_not_served(options, plan)}")
    return 1 if failed else 0


def dry_run(options: GridOptions, plan: GridPlan) -> list[str]:
    """List the lines of `dry_run=true`: every cell with its run, state, FLOPs and expected time, and the sums."""
    configs = {run.name: (run, run.compose()) for run in plan.runs}
    costs = {name: cost(config, run.cells[0].dataset) for name, (run, config) in configs.items()}
    seconds = _expected_seconds(configs, costs)
    done = {name for name, (run, config) in configs.items() if run.is_done(out_folder(options), config)}
    lines = [
        "table dataset       blocks width target       guess          aux     space    published  PFLOPs  expected  run"
    ]
    for run in plan.runs:
        for cell in run.cells:
            state = "done" if run.name in done else _clock(seconds[run.name])
            lines.append(f"{_describe(cell)} {costs[run.name].total / 1e15:>7.2f}  {state:>8}  {run.name}")
    lines += [f"{_describe(cell)}       -         -  not in profile={options.profile}" for cell in plan.unserved]
    left = [name for name in configs if name not in done]
    total = sum(seconds[name] for name in left) / options.jobs
    lines.append(f"{len(plan.cells)} cells, {len(plan.runs)} runs of {len(options.seeds)} seed(s), {len(done)} done")
    lines.append(
        f"left: {sum(costs[name].total for name in left) / 1e15:.2f} PFLOPs, "
        f"about {_clock(total)} with jobs={options.jobs}"
    )
    return [*lines, _not_served(options, plan)]


def _expected_seconds(configs: dict[str, tuple[Run, Config]], costs: dict[str, Cost]) -> dict[str, float]:
    """Seconds by run; the cheapest of each guess and space is calibrated, the others of them cost as much per FLOP."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for name, (_, config) in configs.items():
        kinds.setdefault((config.guess_name, config.space), []).append(name)
    seconds: dict[str, float] = {}
    for names in kinds.values():
        cheapest = min(names, key=lambda name: costs[name].step)
        run, config = configs[cheapest]
        pace = seconds_per_flop(config, run.cells[0].dataset, costs[cheapest])
        seconds |= {name: pace * costs[name].total for name in names}
    return seconds


def _describe(cell: Cell) -> str:
    accuracy = "-" if cell.accuracy is None else f"{cell.accuracy:g}"
    return (
        f"{cell.table:>5} {cell.dataset:<13} {cell.blocks:>6} {cell.width:>5} {cell.target:<12} {cell.guess:<14} "
        f"{cell.aux or '-':<7} {cell.space or '-':<8} {accuracy:>9}"
    )


def _not_served(options: GridOptions, plan: GridPlan) -> str:
    names = sorted({cell.dataset for cell in plan.unserved})
    return f"{len(plan.unserved)} cells are not in profile={options.profile}" + f" ({', '.join(names)})" * bool(names)


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{seconds / 60:.1f} min"
