"""Which jobs come first where time is short: those of experiments that a scale lists first."""

from collections.abc import Mapping, Sequence

from harness.plan.job import Job


def priorities(jobs: Mapping[str, Job], experiments: Sequence[str]) -> dict[str, int]:
    """Return a priority by job, the higher the sooner.

    What a job waits for has at least its priority, so that Snakemake, which compares only jobs that
    are ready, does not put off what the first experiment needs.

    Args:
        jobs: By name.
        experiments: In the order of their value.
    """
    rank = {name: len(experiments) - place for place, name in enumerate(experiments)}
    found = {
        name: 0 if job.experiment is None else rank[job.experiment] for name, job in jobs.items()
    }
    waiting = list(jobs)
    while waiting:
        job = jobs[waiting.pop()]
        for earlier in (*job.needs, *job.after):
            if found[earlier] < found[job.name]:
                found[earlier] = found[job.name]
                waiting.append(earlier)
    return found
