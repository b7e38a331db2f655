# Tuning trials, reported runs, what they recorded and their evaluation. The only output of a job is
# its final summary: run folders with checkpoints live in results/runs, which Snakemake never owns.


rule tune:
    input:
        needs=needs,
        after=after,
    output:
        "results/{scale}/jobs/tune/{job}.json",
    priority: priority
    log:
        "results/{scale}/logs/tune/{job}.log",
    threads: PLAN.catalog.scale.threads
    resources:
        gpu=gpus,
    shell:
        JOB


rule train:
    input:
        needs=needs,
        after=after,
    output:
        "results/{scale}/jobs/train/{job}.json",
    priority: priority
    log:
        "results/{scale}/logs/train/{job}.log",
    threads: PLAN.catalog.scale.threads
    resources:
        gpu=gpus,
    shell:
        JOB


rule faults:
    input:
        needs=needs,
        after=after,
    output:
        "results/{scale}/jobs/faults/{job}.json",
    priority: priority
    log:
        "results/{scale}/logs/faults/{job}.log",
    threads: PLAN.catalog.scale.threads
    resources:
        gpu=gpus,
    shell:
        JOB


rule precision:
    input:
        needs=needs,
        after=after,
    output:
        "results/{scale}/jobs/precision/{job}.json",
    priority: priority
    log:
        "results/{scale}/logs/precision/{job}.log",
    shell:
        JOB


rule evaluate:
    input:
        needs=needs,
        after=after,
    output:
        "results/{scale}/jobs/evaluate/{job}.json",
    priority: priority
    log:
        "results/{scale}/logs/evaluate/{job}.log",
    threads: PLAN.catalog.scale.threads
    resources:
        gpu=gpus,
    shell:
        JOB
