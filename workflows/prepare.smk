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


# Prepared data belong to all scales, but inputs of another name, or that are not there yet, would
# prepare them again: this file has one name at every scale, and stays beside the data.
rule checked:
    input:
        after=after,
    output:
        touch("results/data/{job}/checked"),
    priority: priority


rule prepare:
    input:
        after=ancient("results/data/{job}/checked"),
    output:
        # Stays where it is while the job runs, and comes back if it fails.
        update("results/data/{job}/manifest.json"),
    priority: priority
    log:
        "results/data/{job}/prepare.log",
    # The tokenizer's threads take the cores that other jobs leave. To ask for all of them would be to
    # wait until there is nothing else to do, and with it everything that needs these data.
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
