# What comes before training: a check of optimizers and device, data, AdaNewton coefficients.


rule check:
    output:
        "results/{scale}/jobs/check/{job}.json",
    priority: priority
    log:
        "results/{scale}/logs/check/{job}.log",
    params:
        content=content,
    resources:
        gpu=gpus,
    shell:
        JOB


rule prepare:
    input:
        after=after,
    output:
        "results/data/{job}/manifest.json",
    priority: priority
    log:
        "results/data/{job}/prepare.log",
    # The tokenizer uses all cores.
    threads: workflow.cores
    shell:
        JOB


rule calibrate:
    input:
        needs=needs,
        after=after,
    output:
        "results/{scale}/jobs/calibrate/{job}.json",
    priority: priority
    log:
        "results/{scale}/logs/calibrate/{job}.log",
    params:
        content=content,
    shell:
        JOB
