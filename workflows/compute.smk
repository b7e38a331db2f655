# Measurements, closed forms and simulations.


rule measure:
    input:
        needs=needs,
        after=after,
    output:
        "results/{scale}/jobs/measure/{job}.json",
    priority: priority
    log:
        "results/{scale}/logs/measure/{job}.log",
    # Timings are only worth something alone on what is timed.
    threads: alone
    resources:
        gpu=gpus,
    shell:
        JOB


rule compute:
    output:
        "results/{scale}/jobs/compute/{job}.json",
    priority: priority
    log:
        "results/{scale}/logs/compute/{job}.log",
    shell:
        JOB


rule systems:
    input:
        PLAN.outputs(["compute"]),
